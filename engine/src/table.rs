//! A table whose ids are never used twice: an id that outlived its entry finds nothing instead of a stranger.

use slab::Slab;
use std::cell::Cell;
use std::rc::Rc;

const INDEX_BITS: u32 = 24;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;

/// Entries by id. Tables that share a sequence never give out the same id.
pub struct Table<T> {
    slots: Slab<(u64, T)>,
    sequence: Rc<Cell<u64>>,
}

impl<T> Table<T> {
    pub fn new(sequence: Rc<Cell<u64>>) -> Self {
        Table {
            slots: Slab::new(),
            sequence,
        }
    }

    pub fn insert(&mut self, value: T) -> u64 {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let slot = self.slots.vacant_entry();
        let id = (sequence << INDEX_BITS) | slot.key() as u64;
        slot.insert((id, value));
        id
    }

    pub fn get(&self, id: u64) -> Option<&T> {
        match self.slots.get((id & INDEX_MASK) as usize) {
            Some((found, value)) if *found == id => Some(value),
            _ => None,
        }
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        match self.slots.get_mut((id & INDEX_MASK) as usize) {
            Some((found, value)) if *found == id => Some(value),
            _ => None,
        }
    }

    pub fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        Some(self.slots.remove((id & INDEX_MASK) as usize).1)
    }

    pub fn each(&self, visit: impl Fn(&T)) {
        self.slots.iter().for_each(|(_, (_, value))| visit(value));
    }

    pub fn clear(&mut self) {
        self.slots.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_dies_with_its_entry() {
        let mut table = Table::new(Rc::default());
        let first = table.insert("a");
        assert_eq!(table.remove(first), Some("a"));
        let second = table.insert("b");
        assert_ne!(first, second);
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert_eq!(table.get_mut(second), Some(&mut "b"));
    }
}
