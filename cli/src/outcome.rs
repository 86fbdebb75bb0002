//! How a command ends: the exit codes, and the failures that lead to them.
//!
//! The codes are part of what `bgb` promises to scripts: [`EXIT_CODES`] is printed by `bgb --help`, a number is never
//! given another meaning. Law: a failure's message says what happened, to what, and what to do next.

use std::fmt;
use std::io;

/// The exit codes, as `bgb --help` shows them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line, or a value in it, is not accepted
  3  there is no such device, collection, policy, task or file
  4  conflict: the name is taken, or what was looked at has changed meanwhile
  5  the manager cannot be reached, or cannot answer for the moment
  6  finished, but not every device succeeded
  7  not confirmed, so nothing was sent
  8  the manager does not accept the token";

/// An exit code with its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// It could not be done.
    Failed,
    /// The command line, or a value in it, is not accepted; clap uses the same number.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// It is otherwise than it was when it was looked at.
    Conflict,
    /// No answer from the manager.
    Unreachable,
    /// The task is over, or is no longer watched, and not every device succeeded.
    NotAllSucceeded,
    /// Nobody said yes.
    NotConfirmed,
    /// The token is not the manager's.
    Unauthorized,
}

impl Exit {
    /// The number that the process ends with.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
            Self::NotAllSucceeded => 6,
            Self::NotConfirmed => 7,
            Self::Unauthorized => 8,
        }
    }
}

/// Why a command ended before its end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It has something to say, and an exit code.
    Told {
        /// The exit code.
        exit: Exit,
        /// What happened, to what, and what to do next.
        message: String,
    },
    /// Whoever read standard output has closed it, as `head` does: that is not an error.
    OutputClosed,
}

impl Failure {
    /// A failure with its exit code.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self::Told { exit, message: message.into() }
    }

    /// A failure of the general kind.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// A value that cannot be meant.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Standard output could not be written.
    pub(crate) fn of_output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::failed(format!("standard output cannot be written: {error}")),
        }
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Told { exit, .. } => *exit,
            Self::OutputClosed => Exit::Done,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told { message, .. } => formatter.write_str(message),
            Self::OutputClosed => formatter.write_str("standard output was closed"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_text_names_every_exit_code_and_no_other() {
        let all = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::NotFound,
            Exit::Conflict,
            Exit::Unreachable,
            Exit::NotAllSucceeded,
            Exit::NotConfirmed,
            Exit::Unauthorized,
        ];
        let shown: Vec<u8> = EXIT_CODES
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(shown, all.map(Exit::code));
    }

    #[test]
    fn a_closed_output_is_no_error_and_a_full_disk_is() {
        let closed = Failure::of_output(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(closed.exit(), Exit::Done);
        let full = Failure::of_output(&io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.exit(), Exit::Failed);
    }
}
