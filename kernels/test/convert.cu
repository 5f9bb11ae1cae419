// gpu/convert.h.
#include <gpu/convert.h>
#include <gpu/memory.h>
#include <test/test.h>

namespace test {

template <class E>
GPU_DEVICE void widen_all(u32* to) {
  for (u32 pattern = threadIdx.x; pattern < 65536; pattern += blockDim.x) {
    store(to + pattern, bits(to_f32(E{static_cast<u16>(pattern)})));
  }
}

// Each chunk is unpacked all at once, packed again, and unpacked word by word.
template <class E>
GPU_DEVICE void repack(const LoraTest& p, u32 from, u32 to) {
  constexpr u32 elements = chunk_elements<E>;
  for (u32 i = threadIdx.x; i < p.n[0]; i += blockDim.x) {
    const Chunk chunk = load(in<Chunk>(p, from) + i);
    float values[elements];
    unpack<E>(chunk, values);
    float* target = out<float>(p, to) + i * elements * 2;
    for (u32 e = 0; e < elements; e++) store(target + e, values[e]);
    const Chunk again = pack<E>(values);
    for (u32 w = 0; w < 4; w++) {
      if constexpr (same_type<E, float>) {
        store(target + elements + w, from_bits(again.word[w]));
      } else {
        float low, high;
        unpack<E>(again.word[w], low, high);
        store(target + elements + 2 * w, low);
        store(target + elements + 2 * w + 1, high);
      }
    }
  }
}

}  // namespace test

// out[0], out[1]: bits of the f32 of every f16 and every bf16.
GPU_KERNEL(test_convert_widen, LoraTest, 64, 1) {
  test::widen_all<gpu::f16>(test::out<gpu::u32>(params, 0));
  test::widen_all<gpu::bf16>(test::out<gpu::u32>(params, 1));
}

// in[0]: n[0] bit patterns of f32. For each, with its successor modulo n[0]: out[0]: f16 in the lower half, bf16 in the
// upper; out[1]: both packed as f16; out[2]: both packed as bf16; out[3]: the value itself as f32.
GPU_KERNEL(test_convert_narrow, LoraTest, 64, 1) {
  using namespace test;
  for (u32 i = threadIdx.x; i < params.n[0]; i += blockDim.x) {
    const float value = from_bits(load(in<u32>(params, 0) + i));
    const float next = from_bits(load(in<u32>(params, 0) + (i + 1) % params.n[0]));
    store(out<u32>(params, 0) + i, u32{from_f32<f16>(value).bits} | u32{from_f32<bf16>(value).bits} << 16);
    store(out<u32>(params, 1) + i, pack<f16>(value, next));
    store(out<u32>(params, 2) + i, pack<bf16>(value, next));
    store(out<u32>(params, 3) + i, bits(to_f32(from_f32<float>(value))));
  }
}

// in[i]: n[0] chunks of f32, f16, bf16. out[i]: for each chunk its values, then its values after packing them again.
GPU_KERNEL(test_convert_chunks, LoraTest, 64, 1) {
  test::repack<float>(params, 0, 0);
  test::repack<gpu::f16>(params, 1, 1);
  test::repack<gpu::bf16>(params, 2, 2);
}

// in[0]: n[0] triples of two words and a selector. out[0]: byte_permute of each.
GPU_KERNEL(test_convert_bytes, LoraTest, 64, 1) {
  using namespace test;
  for (u32 i = threadIdx.x; i < params.n[0]; i += blockDim.x) {
    const u32* from = in<u32>(params, 0) + 3 * i;
    store(out<u32>(params, 0) + i, byte_permute(load(from), load(from + 1), load(from + 2)));
  }
}
