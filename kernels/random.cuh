// Random words by Philox4x32 with 7 rounds, as fusedopt/philox.py: the same for an element on every processor.
#pragma once

// What the words of a tensor's elements are drawn from in one step.
struct Draw {
  unsigned key[2], step, number;  // the seed's two words; the step; of the tensor, in the optimizer
};

__device__ inline Draw draw_of(double seed, double step, unsigned number) {
  const unsigned long long whole = (unsigned long long)seed;
  return {{(unsigned)whole, (unsigned)(whole >> 32)}, (unsigned)(unsigned long long)step, number};
}

// A power of it for each stream: what is multiplied by 3 is correlated with what is not.
__device__ constexpr unsigned multiplier(unsigned stream) {
  return stream ? 0x9e3779b1u * multiplier(stream - 1) : 1u;
}

// A word for each of four neighbours, whose 16 random bits are another product's upper half for each stream.
struct Words {
  unsigned word[4];

  // Of the parameter, 0, or of its state k, k + 1.
  template <unsigned STREAM> __device__ unsigned noise(unsigned lane) const {
    constexpr unsigned by = multiplier(STREAM);
    return (word[lane] * by) >> 16;
  }
};

// Of the elements from `first` on, which is a multiple of 4.
__device__ inline Words words_of(const Draw& draw, unsigned long long first) {
  const unsigned long long quad = first / 4;
  unsigned c[4] = {(unsigned)quad, (unsigned)(quad >> 32), draw.step, draw.number};
#pragma unroll
  for (unsigned round = 0; round < 7; round++) {
    const unsigned long long even = 0xd2511f53ull * c[0], odd = 0xcd9e8d57ull * c[2];
    c[0] = (unsigned)(odd >> 32) ^ c[1] ^ (draw.key[0] + round * 0x9e3779b9u);
    c[1] = (unsigned)odd;
    c[2] = (unsigned)(even >> 32) ^ c[3] ^ (draw.key[1] + round * 0xbb67ae85u);
    c[3] = (unsigned)even;
  }
  return {{c[0], c[1], c[2], c[3]}};
}
