//! Session tickets that outlive the process: after a restart the fleet resumes, at a third of a full handshake's cost.
//!
//! ```text
//! ticket   key's id (16) | nonce (12) | sealed: issued (8, seconds) and what rustls wants to have again | tag (16)
//! file     "BGBTKT01" | SHA-256 of the authority (32) | keys: id (16), secret (32), made (8, seconds), the newest first
//! ```
//!
//! AES-256-GCM with a nonce drawn for each ticket, over the key's id and the authority. A key makes tickets for a day and opens them for eight;
//! a ticket is good for seven. The file is its owner's alone (mode 0600), and only ever replaced as a whole. Laws: keys of another authority open
//! nothing, since a ticket stands for a certificate that was verified under one; what cannot be opened is no error, its owner shakes hands in
//! full; a key is wiped when nobody needs it any more. Resuming asks nobody for a certificate: dates, blocks and revocations are checked anew
//! by the hub.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use bgb_daemon::secret::{self, SecretError};
use bgb_protocol::ids::UnixMillis;
use parking_lot::RwLock;
use rustls::server::ProducesTickets;
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

/// What the file begins with.
const MAGIC: &[u8; 8] = b"BGBTKT01";
const ID_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
const RECORD_BYTES: usize = ID_BYTES + SECRET_BYTES + 8;

const DAY_SECS: u64 = 24 * 60 * 60;
/// A ticket is good for so long: the most that TLS 1.3 allows (RFC 8446, 4.6.1).
const TICKET_SECS: u64 = 7 * DAY_SECS;
/// A key makes tickets for so long.
const MAKES_SECS: u64 = DAY_SECS;
/// And opens them for so long: until the last that it made has ended.
const OPENS_SECS: u64 = MAKES_SECS + TICKET_SECS;

/// Tells the time: the wall clock, but in tests.
type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// The keys of a server's tickets, for all its reactors.
pub(super) struct Tickets {
    path: PathBuf,
    authority: [u8; 32],
    clock: Clock,
    /// The newest first.
    keys: RwLock<Vec<Key>>,
    /// The file does not have them all.
    is_unsaved: AtomicBool,
}

struct Key {
    id: [u8; ID_BYTES],
    /// In a place of its own: a list that grows would leave it behind.
    secret: Box<Zeroizing<[u8; SECRET_BYTES]>>,
    made_secs: u64,
    sealing: RandomizedNonceKey,
}

// The secret wipes itself; what the cipher has expanded it to is aws-lc's, which does the same.
impl ZeroizeOnDrop for Key {}

impl Tickets {
    /// The keys in the file at `path`, or new ones where there are none for this authority.
    ///
    /// # Errors
    /// When others can read the file, or the system gives no randomness. Keys that cannot be kept are no error: they end with the process.
    pub(super) fn open(path: &Path, authority: &[u8]) -> anyhow::Result<Self> {
        Self::open_by(path, authority, Arc::new(|| UnixMillis(bgb_daemon::clock::Now::read().unix_ms)))
    }

    fn open_by(path: &Path, authority: &[u8], clock: Clock) -> anyhow::Result<Self> {
        let mut digest_bytes = [0; 32];
        digest_bytes.copy_from_slice(digest(&SHA256, authority).as_ref());
        let keys = match secret::read(path) {
            Ok(bytes) => read(&Zeroizing::new(bytes), &digest_bytes).unwrap_or_else(|| {
                tracing::info!(file = %path.display(), "the keys of session tickets are of another authority; new ones are made");
                Vec::new()
            }),
            Err(SecretError::Missing { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let tickets = Self {
            path: path.to_owned(),
            authority: digest_bytes,
            clock,
            keys: RwLock::new(keys),
            is_unsaved: AtomicBool::new(false),
        };
        if let Err(error) = tickets.rotate() {
            if tickets.keys.read().is_empty() {
                return Err(error);
            }
            // A disk without room must not keep a fleet out.
            tracing::warn!(error = %format!("{error:#}"), "the key of session tickets cannot be kept: it ends with this process, unless it can be within some hours");
        }
        Ok(tickets)
    }

    /// Makes a new key where the newest is old enough, and forgets those that open nothing any more. To be called now and then; it writes
    /// the file, and so no reactor may.
    ///
    /// # Errors
    /// When a new key cannot be made, and the present ones go on; or when the keys cannot be kept, and end with the process unless a later call
    /// can.
    pub(super) fn rotate(&self) -> anyhow::Result<()> {
        let now_secs = self.now_secs();
        let is_fresh = |key: &Key| key.made_secs <= now_secs && now_secs - key.made_secs < MAKES_SECS;
        let has_fresh = self.keys.read().first().is_some_and(is_fresh);
        if has_fresh && !self.is_unsaved.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !has_fresh {
            let made = Key::draw(now_secs)?;
            let mut keys = self.keys.write();
            keys.retain(|key| now_secs.saturating_sub(key.made_secs) < OPENS_SECS);
            keys.insert(0, made);
            self.is_unsaved.store(true, Ordering::Relaxed);
        }
        let mut file = Zeroizing::new(Vec::with_capacity(1_024));
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&self.authority);
        self.keys.read().iter().for_each(|key| key.write(&mut file));
        replace(&self.path, &file).with_context(|| {
            format!("{}: the keys of session tickets cannot be kept", self.path.display())
        })?;
        self.is_unsaved.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn now_secs(&self) -> u64 {
        (self.clock)().0 / 1_000
    }

    fn associated(&self, id: &[u8; ID_BYTES]) -> Aad<[u8; ID_BYTES + 32]> {
        let mut bytes = [0; ID_BYTES + 32];
        bytes[..ID_BYTES].copy_from_slice(id);
        bytes[ID_BYTES..].copy_from_slice(&self.authority);
        Aad::from(bytes)
    }

    fn seal(&self, state: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.read();
        let key = keys.first()?;
        let mut sealed = Vec::with_capacity(8 + state.len() + 16);
        sealed.extend_from_slice(&self.now_secs().to_be_bytes());
        sealed.extend_from_slice(state);
        let nonce = key.sealing.seal_in_place_append_tag(self.associated(&key.id), &mut sealed).ok()?;
        let mut ticket = Vec::with_capacity(ID_BYTES + NONCE_LEN + sealed.len());
        ticket.extend_from_slice(&key.id);
        ticket.extend_from_slice(nonce.as_ref());
        ticket.append(&mut sealed);
        Some(ticket)
    }

    /// Whether it is one of ours that is still good.
    pub(super) fn opens(&self, ticket: &[u8]) -> bool {
        self.unseal(ticket).is_some()
    }

    fn unseal(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (id, rest) = ticket.split_first_chunk::<ID_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.keys.read();
        let key = keys.iter().find(|key| key.id == *id)?;
        let mut opened = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = key.sealing.open_in_place(nonce, self.associated(id), &mut opened).ok()?;
        let (issued, state) = plain.split_first_chunk::<8>()?;
        let age_secs = self.now_secs().checked_sub(u64::from_be_bytes(*issued));
        // One from the future is as good as new: the clock was set back, and what it stands for is checked anew.
        age_secs.is_none_or(|age_secs| age_secs <= TICKET_SECS).then(|| state.to_vec())
    }
}

impl Key {
    fn draw(made_secs: u64) -> anyhow::Result<Self> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        let none = || anyhow::anyhow!("the system gives no randomness for session tickets");
        aws_lc_rs::rand::fill(&mut id).map_err(|_| none())?;
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| none())?;
        let key = Self::of(id, &secret, made_secs).ok_or_else(none);
        secret.zeroize();
        key
    }

    fn of(id: [u8; ID_BYTES], secret: &[u8; SECRET_BYTES], made_secs: u64) -> Option<Self> {
        let sealing = RandomizedNonceKey::new(&AES_256_GCM, secret).ok()?;
        Some(Self { id, secret: Box::new(Zeroizing::new(*secret)), made_secs, sealing })
    }

    fn write(&self, file: &mut Vec<u8>) {
        file.extend_from_slice(&self.id);
        file.extend_from_slice(&**self.secret);
        file.extend_from_slice(&self.made_secs.to_be_bytes());
    }
}

/// The keys of a file; `None` when it is of another authority, or no such file.
fn read(file: &[u8], authority: &[u8; 32]) -> Option<Vec<Key>> {
    let records = file.strip_prefix(MAGIC)?.strip_prefix(authority)?;
    let (records, rest) = records.as_chunks::<RECORD_BYTES>();
    if !rest.is_empty() {
        return None;
    }
    let key = |record: &[u8; RECORD_BYTES]| {
        let (id, rest) = record.split_first_chunk::<ID_BYTES>()?;
        let (secret, made) = rest.split_first_chunk::<SECRET_BYTES>()?;
        Key::of(*id, secret, u64::from_be_bytes(made.try_into().ok()?))
    };
    records.iter().map(key).collect()
}

/// Puts the file in its place as a whole, durably, and never where others can read it.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    secret::write_new(&new, bytes)?;
    std::fs::rename(&new, path)?;
    let folder = path.parent().context("the file is in no folder")?;
    Ok(std::fs::File::open(folder)?.sync_all()?)
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_SECS as u32
    }

    fn encrypt(&self, state: &[u8]) -> Option<Vec<u8>> {
        self.seal(state)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.unseal(ticket)
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Tickets({} keys)", self.keys.read().len())
    }
}

#[cfg(test)]
mod tests;
