//! Bytes that wait, in one piece.

/// A queue of bytes whose front is a slice.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    bytes: Vec<u8>,
    start: usize,
}

impl Pipe {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Forgets the first `count`, as far as there are so many.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count.min(self.len());
        // Each byte is moved once at most for each that has gone.
        if self.start * 2 >= self.bytes.len() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }
}
