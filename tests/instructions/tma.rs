//! Tests of gpu/tma.h.

use super::Rng;
use super::rig::{Call, Rig, Tensor, in_every_configuration};

/// A tensor of random bytes, and the boxes to copy.
struct Case {
    element_bytes: usize,
    dims: Vec<usize>,
    /// Bytes between the starts of rows, and between the starts of planes.
    strides: Vec<usize>,
    boxes: Vec<usize>,
    swizzle: bool,
    starts: Vec<Vec<i32>>,
}

impl Case {
    fn tensor_bytes(&self) -> usize {
        self.strides.last().unwrap() * self.dims.last().unwrap()
    }

    fn box_bytes(&self) -> usize {
        self.boxes.iter().product::<usize>() * self.element_bytes
    }

    fn map(&self, rig: &Rig, address: u64) -> fused_lora::abi::TensorMap {
        let wide = |values: &[usize]| -> Vec<u64> { values.iter().map(|&v| v as u64).collect() };
        rig.tensor_map(&Tensor {
            address,
            element_bytes: self.element_bytes as u32,
            dims: &wide(&self.dims),
            strides: &wide(&self.strides),
            boxes: &self.boxes.iter().map(|&v| v as u32).collect::<Vec<_>>(),
            swizzle: self.swizzle,
        })
    }

    /// Calls `f` for each byte of the box at `start` with its offset in shared memory, and in the tensor if it is
    /// inside.
    fn for_each_byte(&self, start: &[i32], mut f: impl FnMut(usize, Option<usize>)) {
        for byte in 0..self.box_bytes() {
            let mut rest = byte / self.element_bytes;
            let mut place = Some(byte % self.element_bytes);
            for (i, (&size, &dim)) in self.boxes.iter().zip(&self.dims).enumerate() {
                let at = i64::from(start[i]) + (rest % size) as i64;
                rest /= size;
                let step = if i == 0 { self.element_bytes } else { self.strides[i - 1] };
                place = place.filter(|_| at >= 0 && at < dim as i64).map(|place| place + at as usize * step);
            }
            let shared = if self.swizzle { byte ^ (byte >> 3 & 0x70) } else { byte };
            f(shared, place);
        }
    }

    fn coordinates(start: &[i32]) -> [u32; 3] {
        std::array::from_fn(|i| start.get(i).copied().unwrap_or(0) as u32)
    }

    fn shared_bytes(&self) -> u32 {
        self.box_bytes() as u32 + 64
    }
}

fn cases() -> Vec<Case> {
    let case = |element_bytes, dims: &[usize], strides: &[usize], boxes: &[usize], swizzle, starts: &[&[i32]]| Case {
        element_bytes,
        dims: dims.to_vec(),
        strides: strides.to_vec(),
        boxes: boxes.to_vec(),
        swizzle,
        starts: starts.iter().map(|start| start.to_vec()).collect(),
    };
    // Boxes inside the tensor, across each edge, across a corner, and outside.
    let starts: [&[i32]; 7] = [&[0, 0], &[64, 8], &[70, 3], &[3, 15], &[-16, -3], &[90, 19], &[300, -40]];
    vec![
        case(2, &[100, 20], &[208], &[64, 8], true, &starts),
        case(2, &[100, 20], &[208], &[64, 8], false, &starts),
        case(4, &[100, 20], &[400], &[32, 10], true, &starts),
        case(4, &[100, 20], &[416], &[20, 5], false, &starts),
        case(1, &[100, 20], &[112], &[48, 3], false, &starts),
        case(8, &[100, 20], &[800], &[2, 20], false, &starts),
        case(2, &[40, 9, 5], &[96, 960], &[8, 4, 3], false, &[&[0, 0, 0], &[36, 7, 3], &[-5, -1, -1], &[8, 2, 9]]),
        case(2, &[72, 9, 5], &[144, 1440], &[64, 4, 2], true, &[&[0, 1, 2], &[40, 7, 4], &[-5, -1, -1], &[8, 2, 9]]),
        case(4, &[40, 9, 5], &[160, 1440], &[32, 3, 3], true, &[&[0, 0, 0], &[10, 7, 3]]),
    ]
}

fn random_bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.draw() as u8).collect()
}

#[test]
pub fn boxes_of_tensors_arrive_and_are_zero_outside() {
    for case in cases() {
        let data = random_bytes(20, case.tensor_bytes());
        in_every_configuration(|rig| {
            let tensor = rig.upload(&data);
            let maps = [case.map(rig, tensor.at())];
            for start in &case.starts {
                let output = rig.output::<u8>(case.box_bytes());
                let [x, y, z] = Case::coordinates(start);
                let n = [case.dims.len() as u32, case.box_bytes() as u32, x, y, z];
                let call = Call { shared_bytes: case.shared_bytes(), maps: &maps, n: &n, ..Call::default() };
                rig.launch("test_tma_load", &Call { outputs: &[output.at()], ..call });
                let mut expected = vec![0; case.box_bytes()];
                case.for_each_byte(start, |shared, place| expected[shared] = place.map_or(0, |place| data[place]));
                assert!(rig.download(&output) == expected, "{:?} at {start:?}", case.dims);
            }
        });
    }
}

#[test]
pub fn boxes_go_to_tensors_and_are_clipped() {
    for case in cases() {
        let before = random_bytes(21, case.tensor_bytes());
        let boxes = random_bytes(22, 2 * case.box_bytes());
        for pair in case.starts.windows(2) {
            let mut expected = before.clone();
            let mut writes = vec![0; before.len()];
            for (start, source) in pair.iter().zip(boxes.chunks(case.box_bytes())) {
                case.for_each_byte(start, |shared, place| {
                    if let Some(place) = place {
                        expected[place] = source[shared];
                        writes[place] += 1;
                    }
                });
            }
            if writes.contains(&2) {
                continue; // two bulk stores of one thread are not ordered
            }
            in_every_configuration(|rig| {
                let (tensor, input) = (rig.upload(&before), rig.upload(&boxes));
                let seen = rig.output::<u8>(before.len());
                let maps = [case.map(rig, tensor.at())];
                let ([x0, y0, z0], [x1, y1, z1]) = (Case::coordinates(&pair[0]), Case::coordinates(&pair[1]));
                let words = before.len() as u32 / 4;
                let n = [case.dims.len() as u32, case.box_bytes() as u32, x0, y0, z0, x1, y1, z1, words];
                let call = Call { shared_bytes: case.shared_bytes(), maps: &maps, n: &n, ..Call::default() };
                let outputs = [seen.at(), tensor.at()];
                rig.launch("test_tma_store", &Call { inputs: &[input.at()], outputs: &outputs, ..call });
                assert!(rig.download(&tensor) == expected, "{:?} at {pair:?}", case.dims);
                assert!(rig.download(&seen) == expected, "{:?} at {pair:?}, as seen by the CTA", case.dims);
            });
        }
    }
}

#[test]
pub fn a_ring_between_the_copy_engine_and_warps() {
    for rounds in [1usize, 2, 3, 9] {
        let mut rng = Rng(23);
        let data: Vec<u32> = (0..rounds * 256).map(|_| rng.draw() as u32).collect();
        // Each lane reads two chunks of a box in shared memory, four rows apart.
        let sum = |lane: usize, word: usize| {
            let mut sum = 0u32;
            for round in 0..rounds {
                for place in [lane, lane + 32] {
                    let (row, chunk) = (place / 8, (place % 8) ^ (place / 8 % 8));
                    let value = data[round * 256 + row * 32 + chunk * 4 + word];
                    sum = sum.wrapping_add(value.wrapping_mul(round as u32 + 1));
                }
            }
            sum
        };
        let sums: Vec<u32> = (0..128).map(|i| sum(i / 4, i % 4)).collect();
        let changed: Vec<u32> = data.iter().enumerate().map(|(i, word)| word.wrapping_add((i / 256) as u32)).collect();
        in_every_configuration(|rig| {
            let (input, output, target) = (rig.upload(&data), rig.output::<u32>(128), rig.output::<u32>(data.len()));
            let map = |address| {
                let dims = [64, rounds as u64 * 8];
                rig.tensor_map(&Tensor {
                    address,
                    element_bytes: 2,
                    dims: &dims,
                    strides: &[128],
                    boxes: &[64, 8],
                    swizzle: true,
                })
            };
            let maps = [map(input.at()), map(target.at())];
            let n = [rounds as u32];
            let call = Call { threads: 96, shared_bytes: 5 * 1024 + 48, maps: &maps, n: &n, ..Call::default() };
            rig.launch("test_tma_ring", &Call { outputs: &[output.at()], ..call });
            assert_eq!(rig.download(&output), sums);
            assert_eq!(rig.download(&target), changed);
        });
    }
}

#[test]
pub fn what_another_cta_wrote_is_fetched() {
    let data = random_bytes(24, 1024);
    in_every_configuration(|rig| {
        let (input, tensor) = (rig.upload(&data), rig.output::<u8>(1024));
        let (counter, output) = (rig.upload(&[0u32; 2]), rig.output::<u8>(3 * 1024));
        let map = rig.tensor_map(&Tensor {
            address: tensor.at(),
            element_bytes: 2,
            dims: &[64, 8],
            strides: &[128],
            boxes: &[64, 8],
            swizzle: false,
        });
        let outputs = [counter.at(), tensor.at(), output.at()];
        let call = Call { grid: 4, shared_bytes: 1024 + 32, maps: &[map], inputs: &[input.at()], ..Call::default() };
        rig.launch("test_tma_other_cta", &Call { outputs: &outputs, ..call });
        assert!(rig.download(&output) == data.repeat(3));
    });
}
