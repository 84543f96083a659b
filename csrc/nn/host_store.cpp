#include "nn/host_store.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

namespace torchtitan::nn {
namespace {

at::Tensor all_bytes(const at::Storage& storage) {
  const auto size = static_cast<int64_t>(storage.nbytes());
  return at::empty({0}, at::TensorOptions(storage.device()).dtype(at::kByte))
      .set_(storage, 0, {size}, {1});
}

// Of a CPU: not from the allocator of tensors, which counts what is on the device.
at::Tensor host_bytes(int64_t size, at::Device device) {
  if (device.is_cpu()) {
    auto* const bytes = new std::byte[static_cast<size_t>(size)];
    return at::from_blob(bytes, {size}, [bytes](void*) { delete[] bytes; }, at::kByte);
  }
  return at::empty({size}, at::TensorOptions(at::kCPU).dtype(at::kByte).pinned_memory(
                               !device.is_meta()));
}

// A second stream of each device, for copies; none where work has no streams.
class Streams {
 public:
  std::optional<c10::Stream> of(at::Device device) {
    if (device.is_cpu() || device.is_meta()) return std::nullopt;
    const std::lock_guard lock(mutex_);
    const auto found = streams_.find(device.index());
    if (found != streams_.end()) return found->second;
    const c10::impl::VirtualGuardImpl guard(device.type());
    return streams_.emplace(device.index(), guard.getStreamFromGlobalPool(device))
        .first->second;
  }

 private:
  std::mutex mutex_;
  std::map<c10::DeviceIndex, c10::Stream> streams_;
};

c10::Stream current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

// `later` waits for what `earlier` has been given so far.
void order(const c10::Stream& earlier, const c10::Stream& later) {
  c10::Event event(earlier.device_type());
  event.record(earlier);
  event.block(later);
}

// A tensor that is away.
struct View {
  at::Tensor* place;
  at::TensorOptions options;
  std::vector<int64_t> sizes, strides;
  int64_t offset;
};

// A storage and the tensors that look at it.
struct Piece {
  at::Tensor device;  // its bytes; undefined while they are only on the host
  at::Tensor host;    // undefined for meta
  int64_t size;
  std::vector<View> views;
};

class Copies final : public Away {
 public:
  Copies(const std::vector<at::Tensor*>& places, Streams& streams,
         std::shared_ptr<core::MemoryCounter> memory)
      : memory_(std::move(memory)) {
    std::map<const void*, size_t> piece_of;
    for (auto* const place : places) {
      if (!place->defined() || place->storage().nbytes() == 0) continue;
      const auto& storage = place->storage();
      const auto [found, is_new] =
          piece_of.try_emplace(storage.unsafeGetStorageImpl(), pieces_.size());
      if (is_new) {
        pieces_.push_back({.device = all_bytes(storage),
                           .host = {},
                           .size = static_cast<int64_t>(storage.nbytes()),
                           .views = {}});
        size_ += pieces_.back().size;
      }
      pieces_[found->second].views.push_back({.place = place,
                                              .options = place->options(),
                                              .sizes = place->sizes().vec(),
                                              .strides = place->strides().vec(),
                                              .offset = place->storage_offset()});
    }
    if (pieces_.empty()) return;
    device_ = pieces_[0].device.device();
    stream_ = streams.of(device_);
    memory_->add(size_);
    copy([](Piece& piece, const at::Device& device) {
      if (device.is_meta()) return;
      piece.host = host_bytes(piece.size, device);
      piece.host.copy_(piece.device, /*non_blocking=*/true);
    });
  }

  ~Copies() override {
    wait();  // memory that is still read or written must not be used again before
    if (!is_back_) memory_->remove(size_);
  }

  void wait_offload() override {
    wait();
    for (auto& piece : pieces_) {
      for (const auto& view : piece.views) view.place->reset();
      piece.device.reset();
    }
  }

  void start_reload() override {
    for (auto& piece : pieces_) {
      piece.device =
          at::empty({piece.size}, at::TensorOptions(device_).dtype(at::kByte));
    }
    copy([](Piece& piece, const at::Device&) {
      if (piece.host.defined()) piece.device.copy_(piece.host, /*non_blocking=*/true);
    });
  }

  void wait_reload() override {
    wait();
    const c10::AutoGradMode off(false);
    for (auto& piece : pieces_) {
      for (const auto& view : piece.views) {
        *view.place =
            at::empty({0}, view.options)
                .set_(piece.device.storage(), view.offset, view.sizes, view.strides);
      }
    }
    pieces_.clear();
    memory_->remove(size_);
    is_back_ = true;
  }

 private:
  // Beside the computation, after what it has been given so far: that makes what is
  // read here, and it may still use the memory that is written here.
  template <class Each>
  void copy(const Each& each) {
    if (pieces_.empty()) return;
    const c10::AutoGradMode off(false);
    std::optional<c10::StreamGuard> guard;
    if (stream_) {
      order(current_stream(device_), *stream_);
      guard.emplace(*stream_);
    }
    for (auto& piece : pieces_) each(piece, device_);
    is_copying_ = true;
  }

  void wait() {
    if (stream_ && std::exchange(is_copying_, false)) {
      order(*stream_, current_stream(device_));
    }
  }

  std::shared_ptr<core::MemoryCounter> memory_;
  at::Device device_ = at::kCPU;
  std::optional<c10::Stream> stream_;
  std::vector<Piece> pieces_;
  int64_t size_ = 0;
  bool is_copying_ = false;
  bool is_back_ = false;
};

class Copying final : public HostStore {
 public:
  explicit Copying(Recorder recorder) : recorder_(std::move(recorder)) {}

  bool moves() const override { return true; }
  SavedPlaces record(const std::function<void()>& forward) override {
    if (recorder_) return recorder_(forward);
    forward();
    return {};
  }
  bool records() const override { return recorder_ != nullptr; }
  std::unique_ptr<Away> start_offload(const std::vector<at::Tensor*>& places) override {
    return std::make_unique<Copies>(places, streams_, memory_);
  }

 private:
  Recorder recorder_;
  Streams streams_;
};

class InPlace final : public HostStore {
 public:
  bool moves() const override { return false; }
  SavedPlaces record(const std::function<void()>& forward) override {
    forward();
    return {};
  }
  bool records() const override { return false; }
  std::unique_ptr<Away> start_offload(
      const std::vector<at::Tensor*>& /*places*/) override {
    struct Here final : Away {
      void wait_offload() override {}
      void start_reload() override {}
      void wait_reload() override {}
    };
    return std::make_unique<Here>();
  }
};

}  // namespace

std::shared_ptr<HostStore> host_is_device() { return std::make_shared<InPlace>(); }

std::shared_ptr<HostStore> copies_on_host(Recorder recorder) {
  return std::make_shared<Copying>(std::move(recorder));
}

void drop_leaf_memory(const at::Tensor& leaf) {
  const c10::AutoGradMode off(false);
  // Code that has kept the leaf behind autograd's back must not compute on.
  const double nan = std::numeric_limits<double>::quiet_NaN();
  leaf.set_data(at::full({}, nan, leaf.options()).expand(leaf.sizes()));
}

int64_t storage_bytes(const std::vector<at::Tensor*>& places) {
  std::map<const void*, int64_t> sizes;
  for (const auto* const place : places) {
    if (!place->defined()) continue;
    const auto& storage = place->storage();
    sizes[storage.unsafeGetStorageImpl()] = static_cast<int64_t>(storage.nbytes());
  }
  int64_t bytes = 0;
  for (const auto& [storage, size] : sizes) bytes += size;
  return bytes;
}

}  // namespace torchtitan::nn
