//! Which slots of a table have been used since the last flush, so that a flush costs what was used, not what there is.

/// Slots of some tables of `N` entries.
pub(crate) struct UsedSlots<const N: usize> {
    /// (table, slot), each once: those that have held local entries, and those that have held global ones.
    lists: [Vec<(u8, u16)>; 2],
    listed: [[[bool; N]; 3]; 2],
}

impl<const N: usize> UsedSlots<N> {
    /// Makes it in place, in zeroed memory: it is too large for a thread's stack.
    ///
    /// # Safety
    /// `place` is zeroed memory for it that nobody else uses.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn place(place: *mut UsedSlots<N>) {
        // SAFETY: the caller's promise; zeroes are values of the rest.
        unsafe { (&raw mut (*place).lists).write([Vec::new(), Vec::new()]) };
    }

    /// The slot gets an entry.
    #[inline(always)]
    pub(crate) fn note(&mut self, table: usize, slot: usize, global: bool) {
        let listed = &mut self.listed[usize::from(global)][table][slot];
        if !*listed {
            *listed = true;
            self.lists[usize::from(global)].push((table as u8, slot as u16));
        }
    }

    /// All that have held an entry; some twice.
    pub(crate) fn all(&self) -> impl Iterator<Item = (usize, usize)> {
        self.lists.iter().flatten().map(|(table, slot)| (usize::from(*table), usize::from(*slot)))
    }

    /// Takes one that held a local (or a global) entry; it may have been given another since.
    pub(crate) fn pop(&mut self, global: bool) -> Option<(usize, usize)> {
        let (table, slot) = self.lists[usize::from(global)].pop()?;
        let (table, slot) = (usize::from(table), usize::from(slot));
        self.listed[usize::from(global)][table][slot] = false;
        Some((table, slot))
    }
}
