//! What the CPU backend's passes share: a slice that several threads write disjoint parts of, buffers that grow.

use std::marker::PhantomData;
use std::ops::Range;

/// Elements of an element-wise pass that one task takes. A pass over as many stays on the calling thread: it takes a few
/// microseconds, and waking another thread takes longer.
pub(crate) const SMALL: usize = 1 << 14;

/// Makes room for `len` elements.
pub(crate) fn grow<T: Default + Clone>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// A mutable slice handed to several threads. Who may touch what, and when, is the caller's protocol.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a slice whose parts are handed out under the contract of `get` and `get_mut`; sending `&mut [T]` parts
// to other threads needs `T: Send`, reading parts from several threads needs `T: Sync`.
unsafe impl<T: Send + Sync> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// A part of the slice, to write. Panics if it lies outside.
    ///
    /// # Safety
    /// For as long as the result lives, nobody else may hold a part that overlaps `range`.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn get_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice by the assertion; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// A part of the slice, to read. Panics if it lies outside.
    ///
    /// # Safety
    /// For as long as the result lives, nobody may hold an overlapping part to write, and whoever wrote it must have
    /// done so before (in the sense of the memory model).
    pub(crate) unsafe fn get(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice by the assertion; not written by this function's contract.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }
}
