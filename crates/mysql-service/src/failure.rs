//! How a command ends when it does not end well: what is printed, and the exit code.

use std::io::Write as _;
use std::process::ExitCode;

use crate::output;

/// Why a command did not do what was asked. Each kind has an exit code of its own; scripts rely on them.
#[derive(Debug)]
pub(crate) enum Failure {
    /// 1: something failed. The chain of causes is printed.
    Failed(anyhow::Error),
    /// 1: the answer to a question is no. The sentence goes to standard error.
    No(String),
    /// 2: the command line or a configuration is wrong.
    Usage(anyhow::Error),
    /// 3: the change was refused; every reason is printed.
    Refused(Vec<String>),
    /// 4: no answer from the monitor.
    Unreachable(anyhow::Error),
    /// A daemon ended with an error that it has logged; the exit code.
    Logged(u8),
    /// 0: whoever read our output has gone away.
    OutputClosed,
}

impl Failure {
    /// A failure with one sentence and no deeper cause.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(anyhow::Error::msg(message.into()))
    }

    /// A mistake in the command line or a configuration, in one sentence.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(anyhow::Error::msg(message.into()))
    }

    /// Prints the failure to standard error and gives the exit code that goes with it.
    pub(crate) fn report(&self) -> ExitCode {
        let (text, code) = match self {
            Self::Failed(error) => (chain(error), 1),
            Self::No(message) => (message.clone(), 1),
            Self::Usage(error) => (chain(error), 2),
            Self::Refused(reasons) => (refusal(reasons), 3),
            Self::Unreachable(error) => (chain(error), 4),
            Self::Logged(code) => return ExitCode::from(*code),
            Self::OutputClosed => return ExitCode::SUCCESS,
        };
        let label = match self {
            Self::No(_) => String::new(),
            Self::Refused(_) => output::Style::of_stderr().red("refused: "),
            _ => output::Style::of_stderr().red("error: "),
        };
        // Nothing is left to be done when even standard error is gone.
        let _ = writeln!(std::io::stderr(), "{label}{text}");
        ExitCode::from(code)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// The error and its causes, one line; a cause that its parent already spells out is not said twice.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

fn refusal(reasons: &[String]) -> String {
    if let [only] = reasons {
        return only.clone();
    }
    let mut text = format!("for {} reasons", reasons.len());
    for reason in reasons {
        text.push_str("\n  - ");
        text.push_str(reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_not_said_twice() {
        let inner = anyhow::anyhow!("no such file");
        assert_eq!(
            chain(&inner.context("cannot read /etc/x: no such file")),
            "cannot read /etc/x: no such file"
        );
        let inner = anyhow::anyhow!("no such file");
        assert_eq!(
            chain(&inner.context("cannot read /etc/x")),
            "cannot read /etc/x: no such file"
        );
    }

    #[test]
    fn every_reason_of_a_refusal_is_printed() {
        assert_eq!(refusal(&["only".to_owned()]), "only");
        assert_eq!(
            refusal(&["first".to_owned(), "second".to_owned()]),
            "for 2 reasons\n  - first\n  - second"
        );
    }
}
