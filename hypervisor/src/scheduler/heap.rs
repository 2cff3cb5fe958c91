//! A priority queue of things with small numbers, each of which can be changed or taken out.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use super::steps;

/// The place of what is not in the queue.
const ABSENT: u32 = u32::MAX;

/// A binary heap of numbers below a bound, by their keys; of those with equal keys, the least number
/// is first. Each operation takes a number of steps that is logarithmic in what is in it, and
/// allocates nothing.
#[derive(Debug)]
pub(super) struct IndexedHeap<K> {
    /// The heap: no element is before its parent, which is at half its place.
    elements: Vec<(K, u32)>,
    /// The place of each number in the heap.
    places: Vec<u32>,
}

impl<K: Copy + Ord> IndexedHeap<K> {
    /// Makes an empty queue for numbers below `bound`.
    pub(super) fn new(bound: usize) -> Self {
        Self {
            elements: Vec::with_capacity(bound),
            places: alloc::vec![ABSENT; bound],
        }
    }

    /// Makes room for numbers below `bound`, which allocates.
    pub(super) fn grow(&mut self, bound: usize) {
        if bound > self.places.len() {
            self.places.resize(bound, ABSENT);
            self.elements.reserve(bound - self.elements.len());
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    pub(super) fn contains(&self, number: usize) -> bool {
        self.places
            .get(number)
            .is_some_and(|&place| place != ABSENT)
    }

    /// Returns the first one and its key.
    pub(super) fn first(&self) -> Option<(K, usize)> {
        steps::count();
        let &(key, number) = self.elements.first()?;
        Some((key, number as usize))
    }

    /// Returns the one that is neither `number` nor behind any other that is not.
    pub(super) fn first_but(&self, number: usize) -> Option<usize> {
        let of = |place: usize| self.elements.get(place);
        steps::count();
        let first = of(0)?;
        if first.1 as usize != number {
            return Some(first.1 as usize);
        }
        let next = match (of(1), of(2)) {
            (Some(left), Some(right)) => left.min(right),
            (left, right) => left.or(right)?,
        };
        Some(next.1 as usize)
    }

    /// Puts `number` in, or gives it another key. Does nothing with one that is not below the bound.
    pub(super) fn set(&mut self, number: usize, key: K) {
        let Some(&place) = self.places.get(number) else {
            debug_assert!(false, "there is no room for number {number}");
            return;
        };
        let element = (key, number as u32);
        if place == ABSENT {
            self.elements.push(element);
            self.rise(self.elements.len() - 1);
        } else {
            self.elements[place as usize] = element;
            let place = self.rise(place as usize);
            self.sink(place);
        }
    }

    /// Takes `number` out, if it is in.
    pub(super) fn remove(&mut self, number: usize) {
        let Some(place) = self.places.get_mut(number) else {
            return;
        };
        let place = core::mem::replace(place, ABSENT) as usize;
        if place == ABSENT as usize {
            return;
        }
        self.elements.swap_remove(place);
        if place < self.elements.len() {
            let place = self.rise(place);
            self.sink(place);
        }
    }

    /// Moves the element at `place` up to where it belongs. Returns where that is.
    fn rise(&mut self, mut place: usize) -> usize {
        let element = self.elements[place];
        while place > 0 {
            let parent = (place - 1) / 2;
            steps::count();
            if self.elements[parent] <= element {
                break;
            }
            self.put(place, self.elements[parent]);
            place = parent;
        }
        self.put(place, element);
        place
    }

    /// Moves the element at `place` down to where it belongs.
    fn sink(&mut self, mut place: usize) {
        let element = self.elements[place];
        loop {
            let mut child = 2 * place + 1;
            if child >= self.elements.len() {
                break;
            }
            steps::count();
            if child + 1 < self.elements.len() && self.elements[child + 1] < self.elements[child] {
                child += 1;
            }
            if element <= self.elements[child] {
                break;
            }
            self.put(place, self.elements[child]);
            place = child;
        }
        self.put(place, element);
    }

    fn put(&mut self, place: usize, element: (K, u32)) {
        self.elements[place] = element;
        self.places[element.1 as usize] = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_of_numbers_whose_least_key_is_first(
            operations in vec((0..20_usize, proptest::option::of(0..10_u64)), 0..200),
        ) {
            let mut heap = IndexedHeap::new(20);
            let capacity = heap.elements.capacity();
            let mut model = BTreeMap::new();
            for (number, key) in operations {
                if let Some(key) = key {
                    heap.set(number, key);
                    model.insert(number, key);
                } else {
                    heap.remove(number);
                    model.remove(&number);
                }
                let order = |&(number, key): &(&usize, &u64)| (*key, *number);
                let first = model.iter().min_by_key(order);
                prop_assert_eq!(heap.first(), first.map(|(&number, &key)| (key, number)));
                let second = model.iter().filter(|&(&other, _)| other != number).min_by_key(order);
                if heap.first().is_some_and(|(_, first)| first == number) {
                    prop_assert_eq!(heap.first_but(number), second.map(|(&number, _)| number));
                }
                prop_assert_eq!(heap.is_empty(), model.is_empty());
                prop_assert_eq!(heap.contains(number), model.contains_key(&number));
            }
            prop_assert_eq!(heap.elements.capacity(), capacity, "it has not allocated");
        }
    }

    #[test]
    fn an_operation_takes_a_logarithmic_number_of_steps() {
        let mut heap = IndexedHeap::new(512);
        for number in 0..512 {
            heap.set(number, number);
        }
        let before = steps::counted();
        heap.set(0, 1_000);
        heap.set(511, 0);
        heap.remove(5);
        assert!(steps::counted() - before <= 3 * 2 * 9);
    }
}
