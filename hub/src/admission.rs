//! Who may sign in: blocks, revoked certificates, and whether anybody may at present.
//!
//! While the rows are read anew after a reset, what was blocked or revoked before stays so: a blocked device does not slip in
//! between the reset and its row.

use std::collections::BTreeSet;

use bgb_protocol::ids::DeviceId;
use roaring::RoaringBitmap;

use crate::close_reason::CloseReason;
use crate::output::OrderRefusal;

/// Most revoked certificates that are held: one for each device of the largest site that the product is made for.
pub(crate) const REVOKED_MAX: usize = 1_000_000;

/// Whether sessions are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Door {
    #[default]
    Open,
    /// The queue cannot be read, so nobody knows who is blocked.
    Held,
    /// The server stops; nothing opens it again.
    Draining,
}

#[derive(Debug, Default)]
pub(crate) struct Admission {
    door: Door,
    current: Barred,
    /// What was barred before the reset, until its reload is over.
    before_reset: Barred,
}

#[derive(Debug, Default)]
struct Barred {
    devices: RoaringBitmap,
    fingerprints: BTreeSet<[u8; 32]>,
}

impl Admission {
    /// Whether this device may open a session with this certificate.
    pub(crate) fn check(&self, device: DeviceId, fingerprint: &[u8; 32]) -> Result<(), CloseReason> {
        let barred = [&self.current, &self.before_reset];
        if barred.iter().any(|barred| barred.devices.contains(device.0)) {
            return Err(CloseReason::Blocked);
        }
        if barred.iter().any(|barred| barred.fingerprints.contains(fingerprint)) {
            return Err(CloseReason::Revoked);
        }
        match self.door {
            Door::Open => Ok(()),
            Door::Held => Err(CloseReason::Unavailable),
            Door::Draining => Err(CloseReason::Draining),
        }
    }

    pub(crate) fn on_block(&mut self, device: DeviceId) {
        self.current.devices.insert(device.0);
    }

    pub(crate) fn on_unblock(&mut self, device: DeviceId) {
        self.current.devices.remove(device.0);
        self.before_reset.devices.remove(device.0);
    }

    pub(crate) fn on_revoke(&mut self, fingerprint: [u8; 32]) -> Result<(), OrderRefusal> {
        if self.current.fingerprints.len() >= REVOKED_MAX && !self.current.fingerprints.contains(&fingerprint)
        {
            return Err(OrderRefusal::TooManyRevoked { limit: REVOKED_MAX });
        }
        self.current.fingerprints.insert(fingerprint);
        Ok(())
    }

    pub(crate) fn on_sign_ins(&mut self, allowed: bool) {
        self.door = match (self.door, allowed) {
            (Door::Draining, _) => Door::Draining,
            (_, true) => Door::Open,
            (_, false) => Door::Held,
        };
    }

    pub(crate) fn on_drain(&mut self) {
        self.door = Door::Draining;
    }

    pub(crate) fn on_reset(&mut self) {
        let Barred { devices, fingerprints } = std::mem::take(&mut self.current);
        self.before_reset.devices |= devices;
        self.before_reset.fingerprints.extend(fingerprints);
    }

    pub(crate) fn on_reload_over(&mut self) {
        self.before_reset = Barred::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceId = DeviceId(4);
    const PRINT: [u8; 32] = [9; 32];

    #[test]
    fn a_block_outlives_a_reset_until_the_reload_is_over() {
        let mut admission = Admission::default();
        admission.on_block(DEVICE);
        admission.on_revoke(PRINT).unwrap();
        admission.on_reset();
        admission.on_reset();
        assert_eq!(admission.check(DEVICE, &[0; 32]), Err(CloseReason::Blocked));
        assert_eq!(admission.check(DeviceId(5), &PRINT), Err(CloseReason::Revoked));
        admission.on_reload_over();
        assert_eq!(admission.check(DEVICE, &PRINT), Ok(()));
    }

    #[test]
    fn an_unblock_during_a_reload_counts_at_once() {
        let mut admission = Admission::default();
        admission.on_block(DEVICE);
        admission.on_reset();
        admission.on_unblock(DEVICE);
        assert_eq!(admission.check(DEVICE, &PRINT), Ok(()));
    }

    #[test]
    fn a_server_that_stops_takes_nobody_whatever_is_said_later() {
        let mut admission = Admission::default();
        admission.on_sign_ins(false);
        assert_eq!(admission.check(DEVICE, &PRINT), Err(CloseReason::Unavailable));
        admission.on_drain();
        admission.on_sign_ins(true);
        assert_eq!(admission.check(DEVICE, &PRINT), Err(CloseReason::Draining));
    }
}
