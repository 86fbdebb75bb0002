//! Mailboxes: how other threads speak to a reactor.
//!
//! A bounded channel and mio's waker. However many letters come while the reactor is awake, it is woken once: a letter
//! wakes only when none has since the reactor last looked.
//!
//! Threads that may wait (the broker, main) use [`Mailbox::send`]. Reactors must not wait, and use [`Mailbox::try_send`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use mio::{Registry, Token, Waker};

/// Letters that a mailbox holds. Orders come in batches of a thousand rows at most, so this is far more than a burst of
/// tasks; a reader that falls this far behind makes the broker wait, which is what it should do.
const LETTERS_MAX: usize = 4096;

/// The sending end; clones reach the same reactor.
#[derive(Debug)]
pub struct Mailbox<L> {
    letters: Sender<L>,
    bell: Arc<Bell>,
}

impl<L> Clone for Mailbox<L> {
    fn clone(&self) -> Self {
        Self { letters: self.letters.clone(), bell: Arc::clone(&self.bell) }
    }
}

/// The reactor's end.
#[derive(Debug)]
pub struct Inbox<L> {
    letters: Receiver<L>,
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell {
    waker: Waker,
    /// Rung, and not yet heard.
    rung: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // It fails only when the poll it belongs to is gone, and then nobody is left to wake.
            let _ = self.waker.wake();
        }
    }
}

/// A letter that was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Undelivered<L> {
    /// The mailbox is full: try again later.
    Full(L),
    /// The reactor is gone.
    Gone,
}

/// Makes a mailbox whose reactor is woken through `registry` with `token`.
///
/// # Errors
/// When the kernel gives no descriptor for the waker.
pub fn mailbox<L>(registry: &Registry, token: Token) -> io::Result<(Mailbox<L>, Inbox<L>)> {
    let (sender, receiver) = bounded(LETTERS_MAX);
    let bell = Arc::new(Bell { waker: Waker::new(registry, token)?, rung: AtomicBool::new(false) });
    Ok((Mailbox { letters: sender, bell: Arc::clone(&bell) }, Inbox { letters: receiver, bell }))
}

impl<L> Mailbox<L> {
    /// Delivers a letter, waiting for room. `false` when the reactor is gone.
    pub fn send(&self, letter: L) -> bool {
        let delivered = self.letters.send(letter).is_ok();
        self.bell.ring();
        delivered
    }

    /// Delivers a letter if there is room.
    ///
    /// # Errors
    /// [`Undelivered`] says why not, and gives the letter back.
    pub fn try_send(&self, letter: L) -> Result<(), Undelivered<L>> {
        match self.letters.try_send(letter) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(letter)) => Err(Undelivered::Full(letter)),
            Err(TrySendError::Disconnected(_)) => Err(Undelivered::Gone),
        }
    }

    /// Wakes the reactor without a letter: something that it looks at by itself has changed.
    pub fn wake(&self) {
        self.bell.ring();
    }
}

impl<L> Inbox<L> {
    /// To be called when the waker's event has come, before the letters are read: what comes from then on rings again.
    pub fn hear(&self) {
        self.bell.rung.store(false, Ordering::Release);
    }

    /// The next letter.
    #[must_use]
    pub fn next(&self) -> Option<L> {
        self.letters.try_recv().ok()
    }

    /// Whether a letter waits.
    #[must_use]
    pub fn has_letters(&self) -> bool {
        !self.letters.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use std::time::Duration;

    fn wakes(poll: &mut Poll) -> usize {
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        events.iter().count()
    }

    #[test]
    fn many_letters_wake_once_until_they_are_heard() {
        let mut poll = Poll::new().unwrap();
        let (sender, inbox) = mailbox(poll.registry(), Token(7)).unwrap();
        for number in 0..100 {
            assert!(sender.send(number));
        }
        assert_eq!(wakes(&mut poll), 1);
        assert_eq!(wakes(&mut poll), 0, "one ring for all of them");
        inbox.hear();
        assert_eq!(std::iter::from_fn(|| inbox.next()).count(), 100);
        sender.wake();
        assert_eq!(wakes(&mut poll), 1, "what comes after hearing rings again");
    }

    #[test]
    fn a_full_mailbox_gives_the_letter_back() {
        let poll = Poll::new().unwrap();
        let (sender, inbox) = mailbox(poll.registry(), Token(7)).unwrap();
        for number in 0..LETTERS_MAX {
            sender.try_send(number).unwrap();
        }
        assert_eq!(sender.try_send(5), Err(Undelivered::Full(5)));
        drop(inbox);
        assert_eq!(sender.try_send(5), Err(Undelivered::Gone));
        assert!(!sender.send(5));
    }
}
