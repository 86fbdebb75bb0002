//! How the server's threads begin, and that none of them ends unheard.
//!
//! What a thread ends of goes to the main thread, which ends the process: a server without its spool, or without its broker, would look
//! sound and lose what it is there for. That holds for a panic too, which otherwise nobody hears of before the thread is joined.

use std::io;
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

/// Starts a thread. When `run` fails or panics, a sentence goes to `fault`.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn(
    name: &str,
    fault: &Sender<String>,
    run: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let alarm = Alarm { name: name.to_owned(), fault: fault.clone() };
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let alarm = alarm;
        if let Err(sentence) = run() {
            alarm.sound(sentence);
        }
    })
}

/// Sounds when it is dropped by a panic.
struct Alarm {
    name: String,
    fault: Sender<String>,
}

impl Alarm {
    fn sound(&self, sentence: String) {
        // Full or gone: the process is ending already.
        let _ = self.fault.try_send(sentence);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.sound(format!(
                "the thread {:?} panicked, and standard error says where: this is a mistake in the server; please report it",
                self.name
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn a_thread_that_panics_or_fails_is_heard_and_one_that_ends_in_order_says_nothing() {
        let (fault, heard) = bounded(4);
        let patience = Duration::from_secs(20);
        spawn("broker", &fault, || panic!("as this test wants it")).unwrap().join().unwrap_err();
        assert!(heard.recv_timeout(patience).unwrap().contains("\"broker\" panicked"));
        spawn("spool", &fault, || Err("the disk is gone".to_owned())).unwrap().join().unwrap();
        assert_eq!(heard.recv_timeout(patience).unwrap(), "the disk is gone");
        spawn("courier", &fault, || Ok(())).unwrap().join().unwrap();
        assert!(heard.is_empty());
    }
}
