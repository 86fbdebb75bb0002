//! A tunnel's name: where it is, and what only its agent knows.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Digits of an id.
const DIGITS: usize = 52;

/// The name of a tunnel. Where it is, is no secret; who does not know the random part has no way to it, and who does can hinder the session, but neither
/// read nor alter it: for that it takes the keys inside.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TunnelId {
    /// The server that has it.
    pub server: u32,
    /// The shard there.
    pub shard: u16,
    /// The slot there.
    pub slot: u32,
    /// Random bits.
    pub secret: [u8; 16],
}

/// A text that is no tunnel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a tunnel's name is {DIGITS} lower-case hexadecimal digits")]
pub struct TunnelIdError;

impl TunnelId {
    /// Whether `secret` is this tunnel's: as slow for one that begins right as for one that does not.
    #[must_use]
    pub fn has_secret(&self, secret: &[u8; 16]) -> bool {
        let differing = self.secret.iter().zip(secret).fold(0, |bits, (own, other)| bits | (own ^ other));
        std::hint::black_box(differing) == 0
    }
}

impl fmt::Display for TunnelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:08x}{:04x}{:08x}{:032x}",
            self.server,
            self.shard,
            self.slot,
            u128::from_be_bytes(self.secret)
        )
    }
}

/// Logs may be read by more people than the tunnel's agent.
impl fmt::Debug for TunnelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TunnelId(server {}, shard {}, slot {})", self.server, self.shard, self.slot)
    }
}

impl FromStr for TunnelId {
    type Err = TunnelIdError;

    fn from_str(text: &str) -> Result<Self, TunnelIdError> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != DIGITS || !text.bytes().all(is_hex) {
            return Err(TunnelIdError);
        }
        let number =
            |from: usize, to: usize| u128::from_str_radix(&text[from..to], 16).map_err(|_| TunnelIdError);
        Ok(Self {
            server: number(0, 8)? as u32,
            shard: number(8, 12)? as u16,
            slot: number(12, 20)? as u32,
            secret: number(20, DIGITS)?.to_be_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_in_no_other_way() {
        let id = TunnelId { server: 7, shard: 1, slot: 0xabcdef, secret: [0x0f; 16] };
        let text = id.to_string();
        assert_eq!(text, format!("00000007000100abcdef{}", "0f".repeat(16)));
        assert_eq!(text.parse(), Ok(id));
        for wrong in
            [&text[1..], &text.to_uppercase(), &format!("{text}0"), &text.replacen('0', "+", 1), "", "ä"]
        {
            assert_eq!(wrong.parse::<TunnelId>(), Err(TunnelIdError), "{wrong}");
        }
    }

    #[test]
    fn its_secret_is_compared_whole_and_never_shown() {
        let id = TunnelId { server: 1, shard: 0, slot: 0, secret: [7; 16] };
        assert!(id.has_secret(&[7; 16]));
        for at in 0..16 {
            let mut other = [7; 16];
            other[at] ^= 0x80;
            assert!(!id.has_secret(&other));
        }
        assert!(!format!("{id:?}").contains("0707"));
    }
}
