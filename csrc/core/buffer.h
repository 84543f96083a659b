// A flat tensor whose memory can be released and allocated again while every view of it
// stays valid: the views share its storage, and the storage is refilled in place.
//
// It exists for gathered parameters: autograd graphs keep views of them between forward
// and backward, and the bytes are dropped in between. Reading a view while released is
// undefined (elementwise kernels crash), so whoever hands views out must check.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::core {

class Buffer {
 public:
  // Starts released. `numel` elements of the options' dtype on its device.
  Buffer(int64_t numel, const at::TensorOptions& options);

  // [numel]; same tensor for the life of the buffer.
  const at::Tensor& flat() const { return flat_; }
  bool allocated() const { return allocated_; }

  // No effect when already in that state. Contents are undefined after allocate().
  void allocate();
  void release();

 private:
  at::Tensor flat_;
  size_t size_bytes_;
  bool allocated_;
};

}  // namespace torchtitan::core
