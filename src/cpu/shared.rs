//! Helpers of the CPU backend: a slice whose disjoint parts several threads write, and buffers that are made larger.

use std::marker::PhantomData;
use std::ops::Range;

/// Elements that one task of an element-wise pass processes. A pass of up to this size stays on the calling thread: it
/// takes a few microseconds, and waking another thread takes longer.
pub(crate) const SMALL: usize = 1 << 14;

/// Makes a buffer at least `len` elements long.
pub(crate) fn grow<T: Default + Clone>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// A mutable slice that several threads access. The caller ensures that their accesses do not conflict.
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

    /// A writable part of the slice. Panics if `range` is out of bounds.
    ///
    /// # Safety
    /// While the result lives, no other part that overlaps `range` may exist.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn get_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice by the assertion; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// A read-only part of the slice. Panics if `range` is out of bounds.
    ///
    /// # Safety
    /// While the result lives, no writable part that overlaps `range` may exist, and all writes to `range` must have
    /// happened before this call (in the sense of the memory model).
    pub(crate) unsafe fn get(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice by the assertion; not written by this function's contract.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }
}
