//! What a store said, for people.

use std::error::Error;
use std::fmt;

/// Why the store did not do something: every cause on one line, each once. `object_store` repeats in the text of an error
/// what its causes say, and what a store answers has lines.
#[derive(Debug)]
pub struct Said(Box<object_store::Error>);

impl Said {
    pub(super) fn new(error: object_store::Error) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&once(causes(self.0.as_ref()).map(ToString::to_string)))
    }
}

/// It has told its causes.
impl Error for Said {}

/// An error, its cause, and so on.
pub(super) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| Error::source(*error))
}

/// Texts on one line, without those that one before has.
fn once(texts: impl Iterator<Item = String>) -> String {
    texts.fold(String::new(), |said, text| {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if said.contains(&text) {
            said
        } else if said.is_empty() {
            text
        } else {
            format!("{said}: {text}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(texts: &[&str]) -> String {
        once(texts.iter().map(|text| (*text).to_owned()))
    }

    #[test]
    fn what_a_cause_repeats_is_said_once_and_on_one_line() {
        let answer = "status 403: <Error>\n  <Code>Failure</Code>\n</Error>";
        let listing = format!("cannot list: {answer}");
        assert_eq!(
            said(&[&format!("Azure: {listing}"), &listing, answer]),
            "Azure: cannot list: status 403: <Error> <Code>Failure</Code> </Error>"
        );
    }

    #[test]
    fn a_cause_that_only_it_tells_is_said() {
        assert_eq!(
            said(&["GET x: HTTP error", "HTTP error", "connection refused"]),
            "GET x: HTTP error: connection refused"
        );
    }
}
