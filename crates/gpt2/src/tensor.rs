//! Weights that are shared: owned, or part of a memory-mapped file.

use std::ops::{Deref, Range};
use std::sync::Arc;

use fused_lora::Element;
use memmap2::{Mmap, MmapMut};

/// A read-only run of elements. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Tensor<T> {
    storage: Storage,
    bytes: Range<usize>,
    element: std::marker::PhantomData<T>,
}

#[derive(Debug, Clone)]
enum Storage {
    File(Arc<Mmap>),
    Owned(Arc<MmapMut>),
}

impl<T: Element> Tensor<T> {
    /// `bytes` of a mapped file, where they are aligned for `T`.
    pub(crate) fn mapped(file: &Arc<Mmap>, bytes: Range<usize>) -> Option<Self> {
        bytemuck::try_cast_slice::<u8, T>(file.get(bytes.clone())?).ok()?;
        Some(Self { storage: Storage::File(file.clone()), bytes, element: std::marker::PhantomData })
    }

    /// `len` elements that `fill` writes; it starts from zeros.
    ///
    /// The memory is asked for in huge pages where the system has them: a block of the weight spans as many pages as
    /// it has rows otherwise.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn filled(len: usize, fill: impl FnOnce(&mut [T])) -> std::io::Result<Self> {
        let bytes = len * size_of::<T>();
        let mut map = MmapMut::map_anon(bytes.max(1))?;
        #[cfg(target_os = "linux")]
        if bytes >= 1 << 21 {
            // Only advice: without huge pages the same code is a few per cent slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        fill(bytemuck::cast_slice_mut(&mut map[..bytes]));
        Ok(Self { storage: Storage::Owned(Arc::new(map)), bytes: 0..bytes, element: std::marker::PhantomData })
    }

    /// The elements, to write: copied first if they are shared or part of a file, so that whoever shares them keeps
    /// what it has.
    ///
    /// # Errors
    /// If the memory for the copy cannot be had.
    pub fn make_mut(&mut self) -> std::io::Result<&mut [T]> {
        let shared = match &mut self.storage {
            Storage::Owned(map) => Arc::get_mut(map).is_none(),
            Storage::File(_) => true,
        };
        if shared {
            *self = Self::from_slice(self)?;
        }
        match &mut self.storage {
            Storage::Owned(map) => match Arc::get_mut(map) {
                Some(map) => Ok(bytemuck::cast_slice_mut(&mut map[self.bytes.clone()])),
                None => unreachable!("the copy just made is not shared"),
            },
            Storage::File(_) => unreachable!("the copy just made is no file"),
        }
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn from_slice(values: &[T]) -> std::io::Result<Self> {
        Self::filled(values.len(), |out| out.copy_from_slice(values))
    }
}

impl<T: Element> Deref for Tensor<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let bytes: &[u8] = match &self.storage {
            Storage::File(map) => map,
            Storage::Owned(map) => map,
        };
        bytemuck::cast_slice(&bytes[self.bytes.clone()])
    }
}
