//! The signed head: how far the queue has come, and what time it is.
//!
//! Every 60 s the manager signs the database's generation, its highest sequence and the time. Servers pass it on at sign-in
//! and with keepalives. Agents take their time from it; and a head that stops coming is how a withholding server is noticed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::ids::{Generation, SiteCode, UnixMillis};
use crate::signature::{Envelope, SigningKey, StatementKind, TrustedKeys};
use crate::task::{StatementError, signed};

/// How often the manager writes a head, in milliseconds.
pub const HEAD_INTERVAL_MS: u64 = 60 * 1000;

/// What is signed of a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadStatement {
    /// The site.
    pub site: SiteCode,
    /// Which life of the database.
    pub generation: Generation,
    /// The highest sequence number of the queue before this head's own row.
    pub sequence: u64,
    /// The manager's time.
    pub time: UnixMillis,
}

/// A head as it was signed.
#[derive(Clone, Debug)]
pub struct SignedHead {
    bytes: Arc<[u8]>,
    envelope: Arc<Envelope>,
    statement: HeadStatement,
}

signed!(SignedHead, HeadStatement, StatementKind::Head, "head");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::laws::{hold_for, site, time};

    proptest! {
        #[test]
        fn a_head_keeps_the_laws_of_the_codec(
            site in site(), generation in any::<[u8; 16]>(), sequence in any::<u64>(), time in time(),
        ) {
            hold_for(&HeadStatement { site, generation: Generation(generation), sequence, time });
        }
    }

    #[test]
    fn a_head_of_another_site_or_key_is_not_ours() {
        let key = SigningKey::from_seed([5; 32]);
        let (site, trusted) = ("LAB".parse().unwrap(), TrustedKeys::new([key.public()]));
        let statement =
            |site| HeadStatement { site, generation: Generation([1; 16]), sequence: 7, time: UnixMillis(8) };
        let read = |head: &SignedHead| SignedHead::decode(head.bytes()).unwrap();
        let head = read(&SignedHead::sign(statement(site), &key));
        assert_eq!((head.statement(), head.verify(site, &trusted)), (&statement(site), Ok(())));
        let foreign = read(&SignedHead::sign(statement("XYZ".parse().unwrap()), &key));
        assert!(matches!(foreign.verify(site, &trusted), Err(StatementError::Site { .. })));
        let stranger = read(&SignedHead::sign(statement(site), &SigningKey::from_seed([6; 32])));
        assert!(matches!(stranger.verify(site, &trusted), Err(StatementError::Signature(_))));
    }
}
