//! The one way to the threads for work that would hold up those of the server: long computations, SQLite,
//! and the reading of files.
//!
//! A panic in such work is a bug. It is logged as one, with what was being done, and goes on in whoever waits
//! for the work: a request is answered with 500, and the follower ends the process. It never passes for a
//! database that is away, which would be waited for.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tokio::task::JoinError;

/// Runs `work` on a thread of its own and waits for it. `doing` names it in a log line: "judging a batch".
pub async fn run<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    finished(doing, tokio::task::spawn_blocking(work).await).await
}

/// What a task came to that was waited for; its panic is that of who waits.
pub async fn finished<T>(doing: &'static str, joined: Result<T, JoinError>) -> T {
    match joined {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => go_on_panicking(doing, panic),
            // The runtime is being shut down: it drops this task too.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Runs `work` on this thread, of which the runtime takes leave meanwhile: for work on what is borrowed.
///
/// # Panics
///
/// On a runtime with one thread.
pub fn run_here<T>(doing: &'static str, work: impl FnOnce() -> T) -> T {
    // The panic goes on below, so that nobody sees what it may have left half done.
    match catch_unwind(AssertUnwindSafe(|| tokio::task::block_in_place(work))) {
        Ok(done) => done,
        Err(panic) => go_on_panicking(doing, panic),
    }
}

/// Waits for a thread that has nothing more to do; its panic is this one's.
pub fn join(doing: &'static str, thread: std::thread::JoinHandle<()>) {
    if let Err(panic) = thread.join() {
        go_on_panicking(doing, panic);
    }
}

fn go_on_panicking(doing: &'static str, panic: Box<dyn Any + Send>) -> ! {
    let text = panic.downcast_ref::<&str>().copied();
    let reason = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(reason, "a bug in this program: panicked while {doing}");
    resume_unwind(panic)
}
