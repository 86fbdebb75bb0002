//! The target set of a task: who is meant, bound to the signature, provable for one device.
//!
//! The bitmap of device numbers is cut into blocks of 256 bytes (2,048 devices; device `d` is bit `d % 8`, counted from
//! the least significant, of byte `d / 8`). Over the blocks stands a Merkle tree of SHA-256, shaped as in RFC 9162
//! section 2.1 (a node without a sibling moves up unchanged), its leaves and nodes told apart by a first byte:
//!
//! ```text
//! leaf  = SHA-256(0x00 || index of the block, u32 big-endian || block)
//! node  = SHA-256(0x01 || left || right)
//! ```
//!
//! A task's signature covers the root and the number of blocks. A device's proof is its own block and the siblings on
//! the way up: 544 bytes at 1,000,000 devices. So a device learns about the 2,047 beside it, and no more.
//!
//! The tree is built over every block up to the highest device, empty ones too, since each leaf has its own index in it. What that
//! costs is bounded by [`DEVICES_MAX`]. Checking a proof costs a hash a level whatever the numbers, so that is not.

use aws_lc_rs::digest::{Context, SHA256};
use roaring::RoaringBitmap;
use thiserror::Error;

use crate::ids::DeviceId;

/// Bytes of one block.
pub const BLOCK_BYTES: usize = 256;

/// Devices that one block speaks of.
pub const BLOCK_DEVICES: u32 = (BLOCK_BYTES as u32) * 8;

/// Device numbers that a set may hold are below this one: 16,777,216, more than the 10,000,000 devices that a site may have. A tree
/// over all of them has 8,192 leaves, which are hashed in some 10 ms and take 512 KiB; one over all 2^32 numbers would take
/// seconds and 128 MiB, for a set of one device.
pub const DEVICES_MAX: u32 = 1 << 24;

/// Levels above the leaves that a tree over all 2^32 device numbers would have.
const LEVELS_MAX: usize = 21;

/// Most bytes of a proof.
pub const PROOF_BYTES_MAX: usize = BLOCK_BYTES + LEVELS_MAX * 32;

type Hash = [u8; 32];

/// What a signature covers of a target set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TargetDigest {
    /// Root of the tree.
    pub root: Hash,
    /// Number of blocks under it, 1 at least.
    pub blocks: u32,
}

/// Why a proof does not show that the device is a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProofError {
    /// The proof does not have the length that the device's number and the tree's size ask for.
    #[error("the membership proof has {found} bytes where {expected} are needed")]
    Length {
        /// Bytes of the proof.
        found: usize,
        /// Bytes that it should have.
        expected: usize,
    },
    /// The block and the path do not lead to the signed root.
    #[error("the membership proof does not lead to the signed root")]
    Root,
    /// The proof holds, and shows that the device is not in the set.
    #[error("the device is not in the signed target set")]
    NotAMember,
}

impl TargetDigest {
    /// Checks that `proof` shows `device` to be in the set.
    ///
    /// # Errors
    /// As [`ProofError`] says.
    pub fn verify(&self, device: DeviceId, proof: &[u8]) -> Result<(), ProofError> {
        let index = device.0 / BLOCK_DEVICES;
        if index >= self.blocks {
            return Err(ProofError::NotAMember);
        }
        let expected = BLOCK_BYTES + 32 * siblings(index, self.blocks);
        let (Some((block, mut path)), true) = (proof.split_at_checked(BLOCK_BYTES), proof.len() == expected)
        else {
            return Err(ProofError::Length { found: proof.len(), expected });
        };
        let mut hash = leaf(index, block);
        let (mut at, mut width) = (index, self.blocks);
        while width > 1 {
            let sibling = at ^ 1;
            if sibling < width {
                let (next, rest) =
                    path.split_first_chunk().expect("the length was checked against the shape");
                path = rest;
                hash = if at & 1 == 0 { node(&hash, next) } else { node(next, &hash) };
            }
            at /= 2;
            width = width.div_ceil(2);
        }
        if hash != self.root {
            return Err(ProofError::Root);
        }
        let bit = (device.0 % BLOCK_DEVICES) as usize;
        if block[bit / 8] >> (bit % 8) & 1 == 1 { Ok(()) } else { Err(ProofError::NotAMember) }
    }
}

/// A target set with its tree: gives the digest to sign and each device its proof.
///
/// Holds two hashes a block (32 KiB at 1,000,000 devices) beside the compressed bitmap.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetSet {
    devices: RoaringBitmap,
    /// Leaves first, the root's level last.
    levels: Vec<Vec<Hash>>,
}

impl TargetSet {
    /// The set of `devices`; `None` when it is empty, since nobody can be asked for anything, and when a number in it is not below
    /// [`DEVICES_MAX`].
    #[must_use]
    pub fn new(devices: RoaringBitmap) -> Option<Self> {
        let highest = devices.max().filter(|&highest| highest < DEVICES_MAX)?;
        let blocks = highest / BLOCK_DEVICES + 1;
        let mut levels = vec![leaves(&devices, blocks)];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let above = below.chunks(2).map(|pair| match pair {
                [left, right] => node(left, right),
                single => single[0],
            });
            levels.push(above.collect());
        }
        Some(Self { devices, levels })
    }

    /// What is signed of the set.
    #[must_use]
    pub fn digest(&self) -> TargetDigest {
        let root = self.levels.last().expect("a tree has a level")[0];
        TargetDigest { root, blocks: self.levels[0].len() as u32 }
    }

    /// The devices.
    #[must_use]
    pub fn devices(&self) -> &RoaringBitmap {
        &self.devices
    }

    /// Whether `device` is a target.
    #[must_use]
    pub fn contains(&self, device: DeviceId) -> bool {
        self.devices.contains(device.0)
    }

    /// Appends the proof for `device` to `out`; `false`, and nothing appended, when it is not a target.
    pub fn prove(&self, device: DeviceId, out: &mut Vec<u8>) -> bool {
        if !self.contains(device) {
            return false;
        }
        let index = device.0 / BLOCK_DEVICES;
        out.extend_from_slice(&block(&self.devices, index));
        let mut at = index as usize;
        for level in &self.levels {
            if let Some(sibling) = level.get(at ^ 1) {
                out.extend_from_slice(sibling);
            }
            at /= 2;
        }
        true
    }
}

/// Siblings on the way from block `index` of `blocks` to the root.
fn siblings(index: u32, blocks: u32) -> usize {
    let (mut at, mut width, mut count) = (index, blocks, 0);
    while width > 1 {
        count += usize::from((at ^ 1) < width);
        at /= 2;
        width = width.div_ceil(2);
    }
    count
}

fn leaves(devices: &RoaringBitmap, blocks: u32) -> Vec<Hash> {
    (0..blocks).map(|index| leaf(index, &block(devices, index))).collect()
}

fn block(devices: &RoaringBitmap, index: u32) -> [u8; BLOCK_BYTES] {
    let first = index * BLOCK_DEVICES;
    let mut block = [0; BLOCK_BYTES];
    for device in devices.range(first..=first + (BLOCK_DEVICES - 1)) {
        let bit = (device - first) as usize;
        block[bit / 8] |= 1 << (bit % 8);
    }
    block
}

fn leaf(index: u32, block: &[u8]) -> Hash {
    hash(&[&[0], &index.to_be_bytes(), block])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[1], left, right])
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proof(set: &TargetSet, device: u32) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(set.prove(DeviceId(device), &mut out));
        out
    }

    #[test]
    fn a_proof_at_a_million_devices_has_544_bytes() {
        let mut devices = RoaringBitmap::new();
        devices.insert_range(0..1_000_000);
        let set = TargetSet::new(devices).unwrap();
        assert_eq!(set.digest().blocks, 489);
        let proof = proof(&set, 123_456);
        assert_eq!(proof.len(), 544);
        assert_eq!(set.digest().verify(DeviceId(123_456), &proof), Ok(()));
        assert!(set.digest().verify(DeviceId(1_000_001), &proof).is_err());
    }

    #[test]
    fn nobody_is_no_target_set() {
        assert!(TargetSet::new(RoaringBitmap::new()).is_none());
    }

    #[test]
    fn the_highest_number_of_a_site_has_a_place_and_those_beyond_cost_nothing() {
        let set = TargetSet::new(RoaringBitmap::from_iter([DEVICES_MAX - 1])).unwrap();
        let proof = proof(&set, DEVICES_MAX - 1);
        assert_eq!(proof.len(), BLOCK_BYTES + 13 * 32);
        assert_eq!(set.digest().verify(DeviceId(DEVICES_MAX - 1), &proof), Ok(()));
        assert!(TargetSet::new(RoaringBitmap::from_iter([0, DEVICES_MAX])).is_none());
        assert!(TargetSet::new(RoaringBitmap::from_iter([u32::MAX])).is_none());
    }

    #[test]
    fn a_proof_for_any_number_at_all_can_be_checked() {
        let blocks = u32::MAX / BLOCK_DEVICES + 1;
        let mut proof = vec![0; BLOCK_BYTES];
        proof[BLOCK_BYTES - 1] = 0x80;
        proof.resize(PROOF_BYTES_MAX, 7);
        // The last block of a full tree is the right child on every level.
        let root =
            (0..LEVELS_MAX).fold(leaf(blocks - 1, &proof[..BLOCK_BYTES]), |hash, _| node(&[7; 32], &hash));
        let digest = TargetDigest { root, blocks };
        assert_eq!(digest.verify(DeviceId(u32::MAX), &proof), Ok(()));
        assert_eq!(digest.verify(DeviceId(u32::MAX - 1), &proof), Err(ProofError::NotAMember));
        for blocks in [0, 1, blocks - 1, u32::MAX] {
            assert!(TargetDigest { root, blocks }.verify(DeviceId(u32::MAX), &proof).is_err());
        }
    }

    #[test]
    fn a_neighbours_proof_shows_that_a_device_is_not_meant() {
        let set = TargetSet::new(RoaringBitmap::from_iter([5])).unwrap();
        assert_eq!(set.digest().verify(DeviceId(6), &proof(&set, 5)), Err(ProofError::NotAMember));
    }

    proptest! {
        #[test]
        fn every_member_proves_itself_and_nobody_else_can(
            devices in prop::collection::btree_set(0u32..60_000, 1..60),
            stranger in 0u32..60_000,
            flip in any::<prop::sample::Index>(),
        ) {
            let set = TargetSet::new(devices.iter().copied().collect()).unwrap();
            let digest = set.digest();
            for &device in &devices {
                let mut proof = proof(&set, device);
                prop_assert_eq!(digest.verify(DeviceId(device), &proof), Ok(()));
                if !devices.contains(&stranger) {
                    prop_assert!(digest.verify(DeviceId(stranger), &proof).is_err());
                }
                let at = flip.index(proof.len());
                proof[at] ^= 0x10;
                prop_assert!(digest.verify(DeviceId(device), &proof).is_err());
                proof.pop();
                prop_assert!(digest.verify(DeviceId(device), &proof).is_err());
            }
        }
    }
}
