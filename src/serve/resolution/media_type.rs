//! The media types in which a resolution is answered: what there is, and what the client accepts of
//! it.

use std::cmp::Reverse;

use http::{HeaderMap, header};

use crate::serve::header_list::{elements, weight};

/// What the client wants to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// The whole result.
    Result,
    /// The same under the name that it had before.
    OldResult,
    /// The document alone.
    Document,
    /// The same under the name that it had before.
    OldDocument,
    /// The document alone, without a context.
    PlainDocument,
    /// The document alone, for whoever knows only JSON.
    Json,
}

impl MediaType {
    /// What there is, in the order of preference here.
    pub const ALL: [MediaType; 6] = [
        MediaType::Result,
        MediaType::OldResult,
        MediaType::Document,
        MediaType::OldDocument,
        MediaType::PlainDocument,
        MediaType::Json,
    ];

    /// What the header `Accept` likes best of what there is (RFC 9110, 12.5.1); none when it
    /// excludes all of it. Of equals, what it names more precisely, and then what it names first.
    pub fn wanted(request: &HeaderMap) -> Option<MediaType> {
        let values = request.get_all(header::ACCEPT).iter();
        let values = values.filter_map(|value| value.to_str().ok());
        let ranges: Vec<MediaRange> =
            values.flat_map(|value| elements(value, ',')).map(MediaRange::read).collect();
        if ranges.is_empty() {
            return Some(MediaType::Result);
        }
        // The most precise range that a form is in says how much it is wanted.
        let wish = |media_type: MediaType| {
            let own = MediaRange::read(media_type.name());
            let includes = |(place, range): (usize, &MediaRange)| {
                Some((range.precision(&own)?, Reverse(place)))
            };
            let (precision, place) = ranges.iter().enumerate().filter_map(includes).max()?;
            Some((ranges[place.0].weight, precision, place))
        };
        let wishes = MediaType::ALL
            .into_iter()
            .filter_map(|media_type| Some((wish(media_type)?, media_type)));
        let wanted = wishes.filter(|((weight, ..), _)| *weight > 0);
        // Of several that are greatest, this takes the last.
        wanted.rev().max_by_key(|(wish, _)| *wish).map(|(_, media_type)| media_type)
    }

    /// Whether it is the document alone.
    pub const fn is_document(self) -> bool {
        !matches!(self, MediaType::Result | MediaType::OldResult)
    }

    /// As it is written in headers.
    pub const fn name(self) -> &'static str {
        match self {
            MediaType::Result => "application/did-resolution",
            MediaType::OldResult => {
                "application/ld+json;profile=\"https://w3id.org/did-resolution\""
            }
            MediaType::Document => "application/did",
            MediaType::OldDocument => "application/did+ld+json",
            MediaType::PlainDocument => "application/did+json",
            MediaType::Json => "application/json",
        }
    }

    /// That of a result, also where only the document was wanted and there is none.
    pub const fn of_result(self) -> MediaType {
        match self {
            MediaType::OldResult | MediaType::OldDocument => MediaType::OldResult,
            MediaType::Result
            | MediaType::Document
            | MediaType::PlainDocument
            | MediaType::Json => MediaType::Result,
        }
    }

    /// The type of the document in a result.
    pub const fn content_type(self) -> &'static str {
        match self {
            MediaType::OldResult | MediaType::OldDocument => MediaType::OldDocument.name(),
            MediaType::Result
            | MediaType::Document
            | MediaType::PlainDocument
            | MediaType::Json => MediaType::Document.name(),
        }
    }
}

/// An element of `Accept`. Of its parameters only the profile tells types apart here.
struct MediaRange<'a> {
    media_type: String,
    profile: Option<&'a str>,
    weight: u16,
}

impl MediaRange<'_> {
    fn read(text: &str) -> MediaRange<'_> {
        let mut parts = elements(text, ';');
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut range = MediaRange { media_type, profile: None, weight: 1000 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match &*name.to_ascii_lowercase() {
                "q" => range.weight = weight(value),
                "profile" => range.profile = Some(value.trim_matches('"')),
                _ => {}
            }
        }
        range
    }

    /// How precisely it names this type; none when it does not include it.
    fn precision(&self, of: &MediaRange) -> Option<u8> {
        match &*self.media_type {
            named if self.profile.is_some() => {
                (named == of.media_type && self.profile == of.profile).then_some(3)
            }
            "*/*" => Some(0),
            "application/*" => Some(1),
            named => (named == of.media_type).then_some(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_type_is_what_is_accepted() {
        let old = "application/ld+json;profile=\"https://w3id.org/did-resolution\"";
        for (accept, form) in [
            (None, Some(MediaType::Result)),
            (Some("*/*"), Some(MediaType::Result)),
            (Some("application/did-resolution"), Some(MediaType::Result)),
            (Some("application/did"), Some(MediaType::Document)),
            (Some(old), Some(MediaType::OldResult)),
            (Some("application/did+ld+json"), Some(MediaType::OldDocument)),
            (Some("application/did;q=0.5, application/did-resolution"), Some(MediaType::Result)),
            (Some("text/html, */*;q=0.1"), Some(MediaType::Result)),
            (Some("application/did+json"), Some(MediaType::PlainDocument)),
            (Some("application/did+cbor"), None),
            (Some("application/json"), Some(MediaType::Json)),
            (Some("application/json, text/plain, */*"), Some(MediaType::Json)),
            (Some("application/did;q=0"), None),
            // Nothing is excluded by an empty list.
            (Some(""), Some(MediaType::Result)),
            (Some(" ,"), Some(MediaType::Result)),
            // What is said more precisely counts, wherever it stands.
            (Some("application/did-resolution;q=0, */*"), Some(MediaType::OldResult)),
            (Some("*/*, application/did-resolution;q=0.5"), Some(MediaType::OldResult)),
            (Some("application/*;q=0, */*"), None),
            (Some("application/*;q=0.2, */*;q=0, application/did;q=0.1"), Some(MediaType::Result)),
            (Some("*/*, application/did"), Some(MediaType::Document)),
            (Some("application/did, application/did-resolution"), Some(MediaType::Document)),
            (Some("Application/DID;Q=0.1;charset=utf-8"), Some(MediaType::Document)),
            (
                Some("application/did;q=nan, application/did+json;q=0.001"),
                Some(MediaType::PlainDocument),
            ),
            // A type without its profile includes it with any; another profile is another type.
            (Some("application/ld+json"), Some(MediaType::OldResult)),
            (Some("application/ld+json;profile=\"https://example.com/a,b\""), None),
            (Some("application/did+ld+json;profile=\"https://example.com\""), None),
        ] {
            let mut request = HeaderMap::new();
            if let Some(accept) = accept {
                request.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(MediaType::wanted(&request), form, "{accept:?}");
        }
    }
}
