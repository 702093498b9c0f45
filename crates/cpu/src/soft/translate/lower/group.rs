//! Accesses near each other share one lookup of the TLB.
//!
//! What a register holds is followed as a root value plus a constant. An access whose neighbours (in the block, from the
//! same root) lie within [`SPAN`] bytes looks up all of them at once: if they are in one page, one delta leads from each
//! address to its host memory, for as long as the flow neither joins another nor leaves. If they are not, the code goes on
//! in a translation that looks each of them up ([`super::Late::FillGroup`]).

use super::super::layout::{DELTAS, KEPT};
use super::effect::{BASES, Effect, Place};

/// Most bytes from the first to the last of a group: the longer, the likelier across a border.
const SPAN: i32 = 192;
/// Constants beyond this begin a new root.
const FAR: i32 = 1 << 20;

/// A value: a root plus a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    root: u32,
    offset: i32,
}

/// What the addresses of a group have in common: a root, and maybe another one shifted left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Root {
    base: u32,
    index: Option<(u32, u8)>,
}

/// Bytes from `low` to `high`, counted from a root, that lie in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    root: Root,
    low: i32,
    high: i32,
    pub(super) write: bool,
    /// A place known to be on a boundary of 16 bytes.
    aligned: Option<i32>,
    /// Where its delta is.
    pub(super) slot: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Groups {
    values: [Value; BASES],
    roots: u32,
    groups: [Option<Group>; DELTAS + KEPT],
    next: usize,
}

impl Default for Groups {
    fn default() -> Groups {
        let values = std::array::from_fn(|root| Value { root: root as u32, offset: 0 });
        Groups { values, roots: BASES as u32, groups: [None; DELTAS + KEPT], next: 0 }
    }
}

/// A group to be looked up: its first byte as a distance from the access's base, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) group: Group,
    pub(super) disp: i32,
    pub(super) bytes: i32,
}

impl Groups {
    fn value(&self, base: u8) -> Value {
        self.values[usize::from(base) % BASES]
    }

    /// A base that becomes something unknown.
    pub(super) fn renew(&mut self, base: u8) {
        self.values[usize::from(base) % BASES] = Value { root: self.roots, offset: 0 };
        self.roots += 1;
    }

    /// An instruction has been executed.
    pub(super) fn follow(&mut self, effect: &Effect) {
        if let Some(moved) = effect.moves {
            let from = self.value(moved.from);
            match from
                .offset
                .checked_add(moved.by)
                .filter(|offset| offset.unsigned_abs() < FAR.unsigned_abs())
            {
                Some(offset) => self.values[usize::from(moved.to) % BASES] = Value { offset, ..from },
                None => self.renew(moved.to),
            }
        }
        for register in 0..16 {
            if effect.writes >> register & 1 != 0 {
                self.renew(register);
            }
        }
    }

    fn range(&self, place: &Place) -> Option<(Root, i32, i32)> {
        let base = self.value(place.base);
        let mut low = base.offset.checked_add(place.disp)?;
        let mut root = Root { base: base.root, index: None };
        if let Some((index, shift)) = place.index {
            let index = self.value(index);
            low = low.checked_add(index.offset.checked_mul(1 << (shift & 3))?)?;
            root.index = Some((index.root, shift));
        }
        let high = low.checked_add(place.size as i32)?;
        Some((root, low, high))
    }

    /// The group that has looked up this access.
    pub(super) fn find(&self, place: &Place, aligned: bool) -> Option<Group> {
        let (root, low, high) = self.range(place)?;
        self.groups.iter().flatten().copied().find(|group| {
            group.root == root
                && group.low <= low
                && group.high >= high
                && (group.write || !place.write)
                && (!aligned || group.aligned.is_some_and(|at| low.wrapping_sub(at) & 15 == 0))
        })
    }

    /// A group for this access and those of `rest` near it, and how many they are. The first `sure` of the rest will be
    /// executed if nothing faults: where they write, the group asks for that at once.
    pub(super) fn plan(
        &self,
        place: &Place,
        aligned: bool,
        rest: &[Effect],
        sure: usize,
    ) -> Option<(Plan, usize)> {
        let (root, first, end) = self.range(place)?;
        let (mut low, mut high, mut others, mut write) = (first, end, 0, place.write);
        let mut ahead = self.clone();
        for (at, effect) in rest.iter().enumerate() {
            for next in [effect.operand, effect.stack].into_iter().flatten() {
                let Some((its_root, its_low, its_high)) = ahead.range(&next) else { continue };
                let (new_low, new_high) = (low.min(its_low), high.max(its_high));
                if its_root == root
                    && (write || !next.write || at < sure)
                    && new_high.checked_sub(new_low).is_some_and(|span| span <= SPAN)
                {
                    (low, high) = (new_low, new_high);
                    write |= next.write;
                    others += 1;
                }
            }
            ahead.follow(effect);
        }
        if aligned {
            // The first byte's alignment stands for the access's.
            low = first - (first - low + 15) / 16 * 16;
        }
        let group = Group { root, low, high, write, aligned: aligned.then_some(first), slot: self.next };
        let plan = Plan { group, disp: place.disp.checked_add(low - first)?, bytes: high - low };
        Some((plan, others))
    }

    /// Whether all that an address builds on moves by constants, if at all, in a round of these instructions, at whose begin
    /// nothing was known.
    pub(super) fn moves_steadily(&self, place: &Place, round: &[Effect]) -> bool {
        let mut end = Groups::default();
        round.iter().for_each(|effect| end.follow(effect));
        let steady = |root: u32| end.values.get(root as usize).is_some_and(|value| value.root == root);
        self.range(place)
            .is_some_and(|(root, ..)| steady(root.base) && root.index.is_none_or(|(index, _)| steady(index)))
    }

    /// The group of a plan has been looked up.
    pub(super) fn enter(&mut self, group: Group) {
        self.groups[group.slot % (DELTAS + KEPT)] = Some(group);
        if group.slot < DELTAS {
            self.next = (self.next + 1) % DELTAS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::effect::Move;
    use super::*;

    fn read(base: u8, disp: i32) -> Effect {
        Effect {
            operand: Some(Place { base, index: None, disp, size: 8, write: false }),
            ..Effect::default()
        }
    }

    /// A moved register's accesses still belong to its root's group, and a written one's do not.
    #[test]
    fn groups_follow_values_not_registers() {
        let mut groups = Groups::default();
        let rest = [read(3, 40)];
        let place = Place { base: 3, index: None, disp: 8, size: 8, write: false };
        let (plan, others) = groups.plan(&place, false, &rest, 1).unwrap();
        assert_eq!(others, 1);
        assert_eq!((plan.disp, plan.bytes), (8, 40));
        groups.enter(plan.group);
        groups.follow(&Effect { moves: Some(Move { to: 6, from: 3, by: 16 }), ..Effect::default() });
        let moved = |disp| Place { base: 6, index: None, disp, size: 8, write: false };
        assert!(groups.find(&moved(24), false).is_some());
        assert!(groups.find(&moved(25), false).is_none(), "beyond what was looked up");
        assert!(groups.find(&moved(-9), false).is_none(), "before it");
        assert!(groups.find(&Place { write: true, ..moved(24) }, false).is_none(), "only reads were allowed");
        assert!(groups.find(&moved(24), true).is_none(), "nobody looked at its alignment");
        groups.follow(&Effect { writes: 1 << 6, ..Effect::default() });
        assert!(groups.find(&moved(24), false).is_none());
        assert!(groups.find(&place, false).is_some());
    }

    /// What lies too far apart is looked up apart, and a lone access alone.
    #[test]
    fn far_accesses_make_no_group() {
        let groups = Groups::default();
        let place = Place { base: 3, index: None, disp: 0, size: 8, write: false };
        let others = |rest: &[Effect]| groups.plan(&place, false, rest, rest.len()).unwrap().1;
        assert_eq!(others(&[]), 0);
        assert_eq!(others(&[read(3, SPAN)]), 0);
        assert_eq!(others(&[read(2, 8)]), 0, "another root");
    }

    /// A group of aligned accesses begins on a boundary, wherever its first access is.
    #[test]
    fn aligned_groups_begin_aligned() {
        let groups = Groups::default();
        let place = Place { base: 3, index: None, disp: 32, size: 16, write: false };
        let (plan, _) = groups.plan(&place, true, &[read(3, 4)], 1).unwrap();
        assert_eq!((plan.disp, plan.bytes), (0, 48));
    }
}
