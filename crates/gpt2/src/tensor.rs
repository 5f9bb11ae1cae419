//! Shared weights: owned, or part of a memory-mapped file.

use std::ops::Deref;
use std::sync::Arc;

use fused_lora::Element;
use fused_lora_peft::Bytes;
use memmap2::MmapMut;

/// A read-only array of elements. Cloning shares the elements.
#[derive(Debug, Clone)]
pub struct Tensor<T> {
    storage: Storage,
    element: std::marker::PhantomData<T>,
}

#[derive(Debug, Clone)]
enum Storage {
    File(Bytes),
    /// The memory, of which the elements are the first `bytes`.
    Owned {
        map: Arc<MmapMut>,
        bytes: usize,
    },
}

impl<T: Element> Tensor<T> {
    /// Part of a mapped file; `None` if it is not aligned for `T`.
    pub(crate) fn mapped(bytes: &Bytes) -> Option<Self> {
        bytemuck::try_cast_slice::<u8, T>(bytes).ok()?;
        Some(Self { storage: Storage::File(bytes.clone()), element: std::marker::PhantomData })
    }

    /// `len` elements that `fill` writes, starting from zeros.
    ///
    /// Huge pages are requested if the system has them: a block of a weight's rows and columns would otherwise touch a
    /// page for each row.
    ///
    /// # Errors
    /// If the memory cannot be allocated.
    pub fn filled(len: usize, fill: impl FnOnce(&mut [T])) -> std::io::Result<Self> {
        let bytes = len * size_of::<T>();
        let mut map = MmapMut::map_anon(bytes.max(1))?;
        #[cfg(target_os = "linux")]
        if bytes >= 1 << 21 {
            // Only advice: without huge pages the same code is a few per cent slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        fill(bytemuck::cast_slice_mut(&mut map[..bytes]));
        Ok(Self { storage: Storage::Owned { map: Arc::new(map), bytes }, element: std::marker::PhantomData })
    }

    /// The elements, mutable. Elements that are shared or part of a file are copied first, so that other owners do not
    /// see the changes.
    ///
    /// # Errors
    /// If the memory for the copy cannot be allocated.
    pub fn make_mut(&mut self) -> std::io::Result<&mut [T]> {
        let shared = match &mut self.storage {
            Storage::Owned { map, .. } => Arc::get_mut(map).is_none(),
            Storage::File(_) => true,
        };
        if shared {
            *self = Self::from_slice(self)?;
        }
        match &mut self.storage {
            Storage::Owned { map, bytes } => match Arc::get_mut(map) {
                Some(map) => Ok(bytemuck::cast_slice_mut(&mut map[..*bytes])),
                None => unreachable!("the copy just made is not shared"),
            },
            Storage::File(_) => unreachable!("the copy just made is not a file"),
        }
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// If the memory cannot be allocated.
    pub fn from_slice(values: &[T]) -> std::io::Result<Self> {
        Self::filled(values.len(), |out| out.copy_from_slice(values))
    }
}

impl<T: Element> Deref for Tensor<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(match &self.storage {
            Storage::File(bytes) => bytes,
            Storage::Owned { map, bytes } => &map[..*bytes],
        })
    }
}
