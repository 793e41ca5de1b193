//! Connections by number. A number is never given out twice, so that an event that comes late cannot hit the
//! connection that has taken the place of the one it was for.

/// Names a connection: a place, and how often the place was taken before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    place: u32,
    turn: u32,
}

/// Turns are counted in 31 bits: a key and a side fit in the 64 bits that epoll carries for us.
const TURN_MASK: u32 = u32::MAX >> 1;

impl Key {
    /// The key and one bit beside it as a number. Its highest 32 bits are never all ones.
    pub(super) fn pack(self, bit: bool) -> u64 {
        (u64::from(self.turn) << 33) | (u64::from(self.place) << 1) | u64::from(bit)
    }

    /// What [`Key::pack`] was made of.
    pub(super) fn unpack(number: u64) -> (Self, bool) {
        let place = u32::try_from((number >> 1) & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let turn = u32::try_from(number >> 33).unwrap_or(TURN_MASK);
        (Self { place, turn }, number & 1 == 1)
    }
}

/// Holds items by [`Key`].
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    turn: u32,
    item: Option<T>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, item: T) -> Key {
        if let Some(place) = self.free.pop() {
            let slot = &mut self.places[place as usize];
            slot.item = Some(item);
            return Key {
                place,
                turn: slot.turn,
            };
        }
        // A place takes two open files; the kernel's limit on those is far below 2^32.
        let place = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.places.push(Place {
            turn: 0,
            item: Some(item),
        });
        Key { place, turn: 0 }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.places
            .get_mut(key.place as usize)
            .filter(|slot| slot.turn == key.turn)
            .and_then(|slot| slot.item.as_mut())
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self
            .places
            .get_mut(key.place as usize)
            .filter(|slot| slot.turn == key.turn)?;
        let item = slot.item.take()?;
        // The last turn is left out: packed, it would look like the numbers that name no connection.
        slot.turn = if slot.turn + 1 >= TURN_MASK {
            0
        } else {
            slot.turn + 1
        };
        self.free.push(key.place);
        Some(item)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().zip(0_u32..).filter_map(|(slot, place)| {
            let key = Key {
                place,
                turn: slot.turn,
            };
            slot.item.as_ref().map(|item| (key, item))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_key_finds_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(first.place, second.place);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut "second"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn keys_survive_packing() {
        for (place, turn) in [(0, 0), (1, 2), (u32::MAX, TURN_MASK - 1)] {
            for bit in [false, true] {
                let key = Key { place, turn };
                assert_eq!(Key::unpack(key.pack(bit)), (key, bit));
                assert!(key.pack(bit) < u64::MAX - 8);
            }
        }
    }
}
