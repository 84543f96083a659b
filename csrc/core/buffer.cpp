#include "core/buffer.h"

#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

namespace torchtitan::core {

Buffer::Buffer(int64_t numel, const at::TensorOptions& options)
    : flat_(at::empty({numel}, options)), size_bytes_(flat_.storage().nbytes()),
      allocated_(true) {
  release();
}

void Buffer::allocate() {
  if (allocated_) return;
  auto* storage = flat_.storage().unsafeGetStorageImpl();
  if (!flat_.is_meta()) {
    storage->set_data_ptr_noswap(
        c10::GetAllocator(flat_.device().type())->allocate(size_bytes_));
  }
  storage->set_nbytes(size_bytes_);
  allocated_ = true;
}

void Buffer::release() {
  if (!allocated_) return;
  auto* storage = flat_.storage().unsafeGetStorageImpl();
  if (!flat_.is_meta()) {
    storage->set_data_ptr_noswap(c10::DataPtr(nullptr, flat_.device()));
    storage->set_nbytes(0);
  }
  allocated_ = false;
}

}  // namespace torchtitan::core
