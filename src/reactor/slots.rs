//! Slots: a slab whose keys carry a generation.
//!
//! A slot is reused when what was in it has gone. An event, a timer or a letter that still means the old tenant must then not
//! reach the new one: its key holds the generation that the slot had, and every reuse raises it. Sockets and channels live in
//! such slots; a socket's key is its mio token.
//!
//! This module knows nothing of what is kept in it.

use mio::Token;
use slab::Slab;

/// Names a tenant of a slot, and no later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotKey {
    /// The slot.
    pub index: u32,
    /// How many tenants it had before.
    pub generation: u32,
}

impl From<SlotKey> for Token {
    fn from(key: SlotKey) -> Self {
        Token((key.generation as usize) << 32 | key.index as usize)
    }
}

impl From<Token> for SlotKey {
    fn from(token: Token) -> Self {
        Self { index: token.0 as u32, generation: (token.0 >> 32) as u32 }
    }
}

/// Tenants in numbered slots.
#[derive(Debug)]
pub struct Slots<T> {
    tenants: Slab<T>,
    /// By slot, of its present or next tenant; outlives the tenant.
    generations: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { tenants: Slab::new(), generations: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Takes in a tenant.
    ///
    /// # Panics
    /// At 2^32 - 1 tenants, which no process can hold descriptors for.
    pub fn insert(&mut self, tenant: T) -> SlotKey {
        let index = self.tenants.insert(tenant);
        if index == self.generations.len() {
            self.generations.push(0);
        }
        let number = u32::try_from(index).expect("a process has fewer than 2^32 descriptors");
        SlotKey { index: number, generation: self.generations[index] }
    }

    /// The tenant that `key` means, if it is still there.
    #[must_use]
    pub fn tenant(&self, key: SlotKey) -> Option<&T> {
        self.is_current(key).then(|| self.tenants.get(key.index as usize)).flatten()
    }

    /// The tenant that `key` means, if it is still there.
    pub fn tenant_mut(&mut self, key: SlotKey) -> Option<&mut T> {
        if self.is_current(key) { self.tenants.get_mut(key.index as usize) } else { None }
    }

    /// Lets the tenant go; its key means nobody from now on.
    pub fn remove(&mut self, key: SlotKey) -> Option<T> {
        if !self.is_current(key) {
            return None;
        }
        let tenant = self.tenants.try_remove(key.index as usize)?;
        let generation = &mut self.generations[key.index as usize];
        *generation = generation.wrapping_add(1);
        Some(tenant)
    }

    /// The key of whoever is in slot `index` now.
    #[must_use]
    pub fn key_at(&self, index: u32) -> Option<SlotKey> {
        let generation = *self.generations.get(index as usize)?;
        self.tenants.contains(index as usize).then_some(SlotKey { index, generation })
    }

    /// The keys of all tenants.
    pub fn keys(&self) -> impl Iterator<Item = SlotKey> {
        let generations = &self.generations;
        self.tenants
            .iter()
            .map(move |(index, _)| SlotKey { index: index as u32, generation: generations[index] })
    }

    /// All tenants.
    pub fn tenants(&self) -> impl Iterator<Item = &T> {
        self.tenants.iter().map(|(_, tenant)| tenant)
    }

    /// How many slots there are, taken or not: every index is below that.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.generations.len() as u32
    }

    /// How many tenants there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tenants.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    fn is_current(&self, key: SlotKey) -> bool {
        self.generations.get(key.index as usize) == Some(&key.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_never_reaches_a_new_tenant() {
        let mut slots = Slots::default();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        assert_eq!(slots.tenant(first), None);
        let second = slots.insert("second");
        assert_eq!(second.index, first.index);
        assert_ne!(second.generation, first.generation);
        assert_eq!(slots.tenant(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.tenant(second), Some(&"second"));
        assert_eq!(slots.key_at(second.index), Some(second));
    }

    #[test]
    fn a_key_survives_the_way_through_a_token() {
        for key in [SlotKey { index: 0, generation: 0 }, SlotKey { index: 77_777, generation: u32::MAX }] {
            assert_eq!(SlotKey::from(Token::from(key)), key);
        }
    }
}
