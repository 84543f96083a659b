// The table of kernels of one instruction set.
#pragma once

#include "ops/simd/attention.h"
#include "ops/simd/pointwise.h"

namespace torchtitan::ops::simd {

template <class Isa, class T>
inline constexpr Kernels<T> kTable = {
    .name = Isa::name,
    .rms_norm = &Pointwise<Isa, T>::rms_norm,
    .rms_norm_again = &Pointwise<Isa, T>::rms_norm_again,
    .rms_norm_backward = &Pointwise<Isa, T>::rms_norm_backward,
    .rope = &Pointwise<Isa, T>::rope,
    .swiglu = &Pointwise<Isa, T>::swiglu,
    .swiglu_backward = &Pointwise<Isa, T>::swiglu_backward,
    .cross_entropy = &Pointwise<Isa, T>::cross_entropy,
    .attention_scratch = &Attention<Isa, T>::forward_scratch,
    .attention = &Attention<Isa, T>::forward,
    .attention_delta = &Attention<Isa, T>::delta,
    .attention_backward_scratch = &Attention<Isa, T>::backward_scratch,
    .attention_backward = &Attention<Isa, T>::backward,
    .attention_blocks = &Attention<Isa, T>::blocks,
};

}  // namespace torchtitan::ops::simd
