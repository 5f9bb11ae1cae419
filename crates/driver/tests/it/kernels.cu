// Kernels of several kinds of parameters and memory, for compiler.rs.
struct Small { float* y; const float* x; unsigned n; float scale; };
struct alignas(64) Wide { unsigned long long words[16]; float* y; };

extern "C" __global__ void __launch_bounds__(192, 2) bounded(const Small p) {
  __shared__ float part[300];
  const unsigned i = threadIdx.x;
  part[i] = i < p.n ? p.x[i] * p.scale : 0.0f;
  __syncthreads();
  p.y[i] = part[191 - i];
}

extern "C" __global__ void several(float* y, unsigned char odd, double d, int index) {
  volatile float local[400];
  #pragma unroll 1
  for (int i = 0; i < 400; i++) local[i] = y[i] + odd;
  y[index] = local[index & 255] * float(d);
}

extern "C" __global__ void wide(const __grid_constant__ Wide p) { p.y[0] = float(p.words[threadIdx.x & 15]); }

extern "C" __global__ void nothing() {}
