//! What can be wrong with an answer of the fake upstream.

use std::sync::Arc;

/// What is asked for, as far as faults tell requests apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    Export,
    Stream,
    /// `/{did}` and everything below it, and all else.
    Identity,
    /// An operation that is submitted. What keeps it from being answered in time (a status, silence, a redirect, a web
    /// page) keeps it from being taken; what befalls the body of the answer does not.
    Write,
}

/// Changes the lines of a page.
pub type Edit = Arc<dyn Fn(&mut Vec<String>) + Send + Sync>;

/// What can be wrong with an answer.
#[derive(Clone)]
pub enum Fault {
    /// A complete body that ends in the middle of its last line.
    CutLine,
    /// The connection ends after half of the body; `content-length` promised all of it.
    CutBody,
    /// The same, with a chunked body.
    CutChunks,
    /// Half of the body, then nothing, on an open connection.
    SilentBody,
    /// The body in crumbs of so many bytes, one every 10 ms.
    Drip(usize),
    /// Compressed with gzip, whole or cut in half.
    Gzip { cut: bool },
    /// A body without end that is no line.
    EndlessBody,
    /// A status, with a `Retry-After`.
    Status(u16, Option<String>),
    /// A redirect to where one is sent here again.
    RedirectLoop,
    /// The request is taken and never answered.
    Silence,
    /// 200, and a web page.
    WebPage,
    /// Other lines than those of the log; of a stream other messages, of all that are to be sent at once.
    Edited(Edit),
    /// Of a stream: dropped after so many messages, without a close.
    DropAfter(usize),
    /// Of a stream: opened, and then neither a frame nor an answer to any.
    SilentStream,
    /// Of a stream: closed with code and reason at once.
    Close(u16, &'static str),
    /// Of a stream: this message, whatever it is, and then closed with code and reason.
    SayAndClose(String, u16, &'static str),
}

impl Fault {
    /// Lines changed at will: reordered, repeated, left out.
    pub fn edited(edit: impl Fn(&mut Vec<String>) + Send + Sync + 'static) -> Fault {
        Fault::Edited(Arc::new(edit))
    }

    /// The line at this place of the page is replaced.
    pub fn line(index: usize, text: &str) -> Fault {
        let text = text.to_owned();
        Fault::edited(move |lines| {
            if let Some(line) = lines.get_mut(index) {
                line.clone_from(&text);
            }
        })
    }
}
