//! What the driver reads from images that were made here, byte for byte.

use crate::calls::*;
use crate::cubin::{Kernel, POINTWISE, Part, bytes_of_cubin, cubin, fatbin};
use crate::process::tests;

const OTHER: Kernel = Kernel {
    name: "other",
    registers: 255,
    local_bytes: 640,
    static_shared_bytes: 1200,
    max_threads: None,
    parameters: &[(0, 8), (8, 1), (16, 8), (24, 4)],
};

/// `CU_FUNC_ATTRIBUTE_…`: the largest block, static shared bytes, local bytes, registers, the code's compute capability
/// and the largest dynamic shared memory.
const ATTRIBUTES: [u32; 6] = [0, 1, 3, 4, 6, 8];

pub(crate) fn attributes_of(function: usize) -> [i32; 6] {
    ATTRIBUTES.map(|number| made(|value| attribute(value, number, function)))
}

/// Offset and bytes of each parameter.
pub(crate) fn parameters_of(function: usize) -> Vec<(usize, usize)> {
    let mut parameters = vec![];
    loop {
        let (mut offset, mut bytes) = (0, 0);
        if parameter(function, parameters.len(), &mut offset, &mut bytes) != 0 {
            return parameters;
        }
        parameters.push((offset, bytes));
    }
}

fn code_of(image: &[u64]) -> u32 {
    load(&mut 0, image.as_ptr())
}

tests! {
    fn a_cubin_says_what_its_kernels_take("") {
        start();
        let image = cubin((9, 0), &[POINTWISE, OTHER]);
        let module = made(|module| load(module, image.as_ptr()));
        let pointwise = made(|function| find(function, module, POINTWISE.name));
        assert_eq!(attributes_of(pointwise), [128, 0, 0, 32, 90, 48 << 10]);
        assert_eq!(parameters_of(pointwise), [(0, 48)]);
        let other = made(|function| find(function, module, "other"));
        assert_eq!(attributes_of(other), [1024, 1200, 640, 255, 90, (48 << 10) - 1200]);
        assert_eq!(parameters_of(other), [(0, 8), (8, 1), (16, 8), (24, 4)]);
        let same = made(|function| find(function, module, "other"));
        assert_eq!(other, same, "a kernel has one handle, as long as its module lives");
        assert_eq!(find(&mut 0, module, "missing"), 500);
        assert!(text_of(500).contains("'missing'"), "{}", text_of(500));
    }

    fn a_fatbin_gives_the_newest_code_that_runs("capability=8.6") {
        start();
        let code = |capability, registers| {
            Part::Cubin(capability, bytes_of_cubin(capability, &[Kernel { registers, ..POINTWISE }]))
        };
        let image = fatbin(&[code((8, 0), 80), code((8, 6), 86), Part::Ptx((8, 6)), code((8, 9), 89), code((9, 0), 90)]);
        let module = made(|module| load(module, image.as_ptr()));
        let function = made(|function| find(function, module, POINTWISE.name));
        let [.., registers, version, _] = attributes_of(function);
        assert_eq!((registers, version), (86, 86));
    }

    fn images_without_code_for_the_device("capability=8.6") {
        start();
        let code = |capability| Part::Cubin(capability, bytes_of_cubin(capability, &[POINTWISE]));
        let (no_binary, no_compiler) = (209, 221);
        assert_eq!(code_of(&cubin((8, 9), &[POINTWISE])), no_binary);
        assert_eq!(code_of(&fatbin(&[code((8, 9)), code((9, 0))])), no_binary);
        assert!(text_of(no_binary).contains("8.9, 9.0 only, not for 8.6"), "{}", text_of(no_binary));
        assert_eq!(code_of(&fatbin(&[code((8, 9)), Part::Ptx((8, 0))])), no_compiler);
        let ptx = u64::from_le_bytes(*b".version");
        assert_eq!(code_of(&[ptx, 0]), no_compiler);
        assert_eq!(violations(), 0, "an image for another device is no mistake of the caller");
    }

    fn damaged_images_are_refused("") {
        start();
        let invalid = 200;
        let good = fatbin(&[Part::Cubin((9, 0), bytes_of_cubin((9, 0), &[POINTWISE]))]);
        ok(code_of(&good));
        // The words of an entry's header: its kind and the header's own length, the image's length, and its flags.
        let damaged = |at: usize, word: u64| {
            let mut image = good.clone();
            image[at] = word;
            code_of(&image)
        };
        let mut endless = good.clone();
        endless[2..4].copy_from_slice(&[2, 0]);
        assert_eq!(code_of(&endless), invalid, "an entry of no length");
        assert_eq!(damaged(2, 2), invalid, "an entry with a header of no length");
        assert_eq!(damaged(3, u64::MAX), invalid, "an entry that is longer than an address can be");
        assert_eq!(damaged(3, good[3] + 8), invalid, "an entry that ends behind the fatbin");
        assert_eq!(damaged(7, 0x8000), invalid, "an entry that is said to be compressed, and is not");
        assert_eq!(damaged(7, 0x2000), invalid, "an entry that is compressed with LZ4");
        assert_eq!(damaged(10, 0), invalid, "a cubin without its first bytes");
        assert_eq!(code_of(&[0xfeed_face_dead_beef]), invalid);
    }
}
