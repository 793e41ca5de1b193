//! What an HTTP service of ours answers, read with bounds, and what a caller branches on when it is not what was wished.

use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;
use topology::{OperationId, Reason};

use crate::operation::{Accepted, Planned};
use crate::problem::{self, Problem};

/// The largest answer that is read, in bytes: far above any document of ours.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Why a request was not answered as wished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A base URL is not one.
    #[error("`{url}` is not an address of a service: it must look like `http://host:port`")]
    BadUrl {
        /// As given.
        url: String,
    },
    /// Nobody answers at any of the URLs, or not within the deadline.
    #[error("{url} does not answer: {reason}")]
    Unreachable {
        /// The last one that was tried.
        url: String,
        /// What the attempt ended with.
        reason: String,
    },
    /// Refused, with every condition that failed.
    #[error("{}", sentences(.reasons))]
    Refused {
        /// Never empty.
        reasons: Vec<Reason>,
    },
    /// Another operation is running.
    #[error("{detail}")]
    Conflict {
        /// The one in the way.
        operation: OperationId,
        /// A sentence about it.
        detail: String,
    },
    /// What was asked about does not exist.
    #[error("{detail}")]
    NotFound {
        /// What, in a sentence.
        detail: String,
    },
    /// Another status that is not a success.
    #[error("the answer is {status}: {detail}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// What the answer said.
        detail: String,
    },
    /// The answer is not the document that it should be.
    #[error("{url} answered with something unexpected: {reason}")]
    Malformed {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The answer to a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is being done, as an operation.
    Accepted(OperationId),
    /// It was only asked what would be done.
    Planned(Planned),
}

pub(super) async fn read_change(response: Response) -> Result<Answer, Error> {
    if response.status() == StatusCode::ACCEPTED {
        let accepted: Accepted = read_json(response).await?;
        Ok(Answer::Accepted(accepted.operation))
    } else {
        read_json(response).await.map(Answer::Planned)
    }
}

pub(super) async fn check_status(response: Response) -> Result<Response, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = read_body(response).await.unwrap_or_default();
    if let Ok(problem) = serde_json::from_slice::<Problem>(&body) {
        return Err(from_problem(problem));
    }
    let text: String = String::from_utf8_lossy(&body).trim().chars().take(500).collect();
    let detail = if text.is_empty() {
        status.canonical_reason().unwrap_or("no reason given").to_owned()
    } else {
        text
    };
    Err(if status == StatusCode::NOT_FOUND {
        Error::NotFound { detail }
    } else {
        Error::Status {
            status: status.as_u16(),
            detail,
        }
    })
}

fn from_problem(problem: Problem) -> Error {
    match (problem.status, problem.operation) {
        (409, Some(operation)) if problem.kind == problem::BUSY => Error::Conflict {
            operation,
            detail: problem.detail,
        },
        (409, _) if !problem.reasons.is_empty() => Error::Refused {
            reasons: problem.reasons,
        },
        (404, _) => Error::NotFound {
            detail: problem.detail,
        },
        (status, _) => Error::Status {
            status,
            detail: problem.detail,
        },
    }
}

pub(super) async fn read_body(mut response: Response) -> Result<Vec<u8>, Error> {
    let url = response.url().to_string();
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= MAX_ANSWER_BYTES => body.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                return Err(Error::Malformed {
                    url,
                    reason: format!("it is longer than {MAX_ANSWER_BYTES} bytes"),
                });
            }
            Ok(None) => return Ok(body),
            Err(error) => {
                return Err(Error::Unreachable {
                    url,
                    reason: chain(&error.without_url()),
                });
            }
        }
    }
}

pub(super) async fn read_json<T: DeserializeOwned>(response: Response) -> Result<T, Error> {
    let url = response.url().to_string();
    let body = read_body(response).await?;
    serde_json::from_slice(&body).map_err(|error| Error::Malformed {
        url,
        reason: error.to_string(),
    })
}

fn sentences(reasons: &[Reason]) -> String {
    let messages: Vec<&str> = reasons.iter().map(|reason| reason.message.as_str()).collect();
    messages.join("; ")
}

/// An error with everything that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_become_what_a_caller_branches_on() {
        let problem = |status, kind: &str, operation: Option<&str>, reasons: Vec<Reason>| {
            from_problem(Problem {
                kind: kind.to_owned(),
                title: String::new(),
                status,
                detail: "detail".to_owned(),
                reasons,
                operation: operation.map(|id| id.parse().unwrap()),
            })
        };
        let reasons = topology::Refusal::because("x", "y").reasons;
        assert!(matches!(
            problem(409, problem::BUSY, Some("op-1"), Vec::new()),
            Error::Conflict { .. }
        ));
        assert!(matches!(
            problem(409, problem::REFUSED, None, reasons),
            Error::Refused { .. }
        ));
        assert!(matches!(
            problem(404, problem::NOT_FOUND, None, Vec::new()),
            Error::NotFound { .. }
        ));
        assert!(matches!(
            problem(500, "", None, Vec::new()),
            Error::Status { status: 500, .. }
        ));
    }
}
