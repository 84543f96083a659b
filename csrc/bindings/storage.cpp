#include <ATen/core/Tensor.h>

#include "bindings/module.h"
#include "storage/commit.h"
#include "storage/hashed_file.h"
#include "storage/safetensors_file.h"
#include "storage/stream_copy.h"
#include "storage/verified_file.h"

namespace torchtitan::bindings {
namespace {

using namespace storage;
using Released = py::call_guard<py::gil_scoped_release>;

struct DtypePair {
  Dtype stored;
  at::ScalarType scalar_type;
};

constexpr DtypePair kDtypePairs[] = {{Dtype::kBool, at::kBool},
                                     {Dtype::kU8, at::kByte},
                                     {Dtype::kI8, at::kChar},
                                     {Dtype::kF8E5M2, at::kFloat8_e5m2},
                                     {Dtype::kF8E4M3, at::kFloat8_e4m3fn},
                                     {Dtype::kF8E8M0, at::kFloat8_e8m0fnu},
                                     {Dtype::kI16, at::kShort},
                                     {Dtype::kU16, at::kUInt16},
                                     {Dtype::kF16, at::kHalf},
                                     {Dtype::kBF16, at::kBFloat16},
                                     {Dtype::kI32, at::kInt},
                                     {Dtype::kU32, at::kUInt32},
                                     {Dtype::kF32, at::kFloat},
                                     {Dtype::kC64, at::kComplexFloat},
                                     {Dtype::kF64, at::kDouble},
                                     {Dtype::kI64, at::kLong},
                                     {Dtype::kU64, at::kUInt64}};

at::ScalarType to_scalar_type(Dtype dtype) {
  for (const DtypePair& pair : kDtypePairs) {
    if (pair.stored == dtype) return pair.scalar_type;
  }
  TORCH_INTERNAL_ASSERT(false, "dtype without a pair");
}

Dtype to_stored(at::ScalarType scalar_type) {
  for (const DtypePair& pair : kDtypePairs) {
    if (pair.scalar_type == scalar_type) return pair.stored;
  }
  TORCH_CHECK_VALUE(false, "safetensors has no dtype for ", scalar_type);
}

std::span<std::byte> memory_of(const at::Tensor& tensor, at::ScalarType expected) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.is_contiguous(),
                    "storage: expected a contiguous CPU tensor, got strides ",
                    tensor.strides(), " on ", tensor.device());
  TORCH_CHECK_VALUE(tensor.scalar_type() == expected, "storage: expected ", expected,
                    ", got ", tensor.scalar_type());
  return {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

std::tuple<int64_t, std::string, std::string> to_tuple(const FileRecord& record) {
  return {record.size_bytes, record.sha256, record.blocks};
}

using SpecTuple = std::tuple<std::string, at::ScalarType, std::vector<int64_t>>;

std::vector<TensorSpec> to_specs(const std::vector<SpecTuple>& tuples) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, scalar_type, shape] : tuples) {
    specs.push_back({name, to_stored(scalar_type), shape});
  }
  return specs;
}

py::dict entries_of(const SafetensorsReader& reader) {
  py::dict entries;
  for (const auto& entry : reader.header().entries) {
    entries[py::str(entry.spec.name)] = py::make_tuple(
        to_scalar_type(entry.spec.dtype), py::tuple(py::cast(entry.spec.shape)));
  }
  return entries;
}

void bind_safetensors(py::module_& module) {
  py::class_<SafetensorsReader>(module, "SafetensorsReader",
                                "A safetensors file, its header checked strictly.")
      .def(py::init([](const std::string& path, const std::string& blocks,
                       int64_t num_threads) {
             return std::make_unique<SafetensorsReader>(
                 VerifiedFile(path, blocks, num_threads));
           }),
           Released(), py::arg("path"), py::kw_only(), py::arg("blocks") = "",
           py::arg("num_threads") = 1,
           "blocks: as VerifiedFile. Raises ValueError for a bad file, OSError if it\n"
           "cannot be read.")
      .def_property_readonly("entries", &entries_of,
                             "Tensors by name, in file order: (dtype, shape).")
      .def_property_readonly(
          "metadata",
          [](const SafetensorsReader& reader) { return reader.header().metadata; },
          "Free strings of the header.")
      .def(
          "read_box",
          [](const SafetensorsReader& reader, const std::string& name, at::Tensor out,
             std::vector<int64_t> offset, std::vector<int64_t> size,
             std::vector<int64_t> out_offset) {
            const at::ScalarType dtype = to_scalar_type(reader.entry(name).spec.dtype);
            reader.read_box(name, {std::move(offset), std::move(size)},
                            {.memory = memory_of(out, dtype),
                             .shape = out.sizes().vec(),
                             .offset = std::move(out_offset)});
          },
          Released(), py::arg("name"), py::arg("out"), py::kw_only(), py::arg("offset"),
          py::arg("size"), py::arg("out_offset"),
          "Copy a box of a tensor into out (contiguous, CPU, same dtype), there at\n"
          "out_offset.");

  py::class_<SafetensorsWriter>(module, "SafetensorsWriter",
                                "Streams tensors into a new safetensors file.")
      .def(py::init([](const std::string& path, const std::vector<SpecTuple>& tensors,
                       const std::map<std::string, std::string>& metadata,
                       int64_t num_threads) {
             return std::make_unique<SafetensorsWriter>(path, to_specs(tensors),
                                                        metadata, num_threads);
           }),
           Released(), py::arg("path"), py::arg("tensors"), py::kw_only(),
           py::arg("metadata"), py::arg("num_threads") = 1,
           "tensors: (name, dtype, shape) in the order of the appends to come.")
      .def(
          "append",
          [](SafetensorsWriter& writer, const std::string& name,
             const at::Tensor& data) {
            writer.append(name, memory_of(data, data.scalar_type()));
          },
          Released(), py::arg("name"), py::arg("data"),
          "The data of the next tensor (contiguous, CPU).")
      .def(
          "finish", [](SafetensorsWriter& writer) { return to_tuple(writer.finish()); },
          Released(),
          "Make the file durable; returns its size in bytes, SHA-256 and those of its\n"
          "blocks, as a manifest has them.");
}

void bind_hashed_file(py::module_& module) {
  py::class_<HashedFile>(module, "HashedFile",
                         "A new file, hashed while it is written.")
      .def(py::init<const std::string&, int64_t>(), Released(), py::arg("path"),
           py::kw_only(), py::arg("num_threads") = 1,
           "Raises OSError, also if there is one.")
      .def_property_readonly("num_bytes", &HashedFile::num_bytes, "Written so far.")
      .def(
          "write",
          [](HashedFile& file, const py::bytes& data) {
            const std::string_view view = data;
            const py::gil_scoped_release released;
            file.write(std::as_bytes(std::span(view)));
          },
          py::arg("data"), "Append.")
      .def(
          "write_tensor",
          [](HashedFile& file, const at::Tensor& data) {
            return file.write_with_crc(memory_of(data, data.scalar_type()));
          },
          Released(), py::arg("data"),
          "Append the data of a contiguous CPU tensor; returns their CRC-32.")
      .def(
          "finish", [](HashedFile& file) { return to_tuple(file.finish()); },
          Released(),
          "Make the file durable; returns its size in bytes, SHA-256 and those of its\n"
          "blocks, as a manifest has them.");
}

void bind_verified_file(py::module_& module) {
  py::class_<VerifiedFile>(
      module, "VerifiedFile",
      "A file, compared with the hashes of its blocks while it is read.")
      .def(py::init<const std::string&, std::string, int64_t>(), Released(),
           py::arg("path"), py::kw_only(), py::arg("blocks"), py::arg("num_threads"),
           "blocks: as finish() of what wrote it returns them; an empty text: nothing\n"
           "is compared. Raises ValueError for another number of blocks, OSError.")
      .def_property_readonly("size_bytes", &VerifiedFile::size)
      .def(
          "read",
          [](VerifiedFile& file, int64_t offset, int64_t size) {
            std::string data(static_cast<size_t>(size), '\0');
            {
              const py::gil_scoped_release released;
              file.read_at(offset, std::as_writable_bytes(std::span(data)));
            }
            return py::bytes(data);
          },
          py::arg("offset"), py::arg("size"),
          "Bytes of the file. ValueError if they are damaged or not there.")
      .def(
          "read_into",
          [](VerifiedFile& file, int64_t offset, const at::Tensor& out) {
            file.read_at(offset, memory_of(out, out.scalar_type()));
          },
          Released(), py::arg("offset"), py::arg("out"),
          "The same, into a contiguous CPU tensor.");
}

std::optional<std::string> manifest_text(const FoundCheckpoint& found) {
  if (!found.manifest) return std::nullopt;
  return dump_manifest(*found.manifest);
}

void bind_commit(py::module_& module) {
  py::class_<FoundCheckpoint>(module, "FoundCheckpoint", "A folder named step-N.")
      .def_readonly("step", &FoundCheckpoint::step)
      .def_readonly("path", &FoundCheckpoint::path)
      .def_readonly("problem", &FoundCheckpoint::problem,
                    "Why it cannot be used; empty when nothing is wrong.")
      .def_readonly("unreadable", &FoundCheckpoint::unreadable,
                    "The problem is a refusal of the system, and tells nothing of\n"
                    "what the checkpoint holds.")
      .def_property_readonly("manifest", &manifest_text,
                             "JSON text; None when there is a problem.");
  module.def("create_staging", &create_staging, Released(), py::arg("folder"),
             py::kw_only(), py::arg("step"), py::arg("id"),
             "Create the folder that all ranks write a checkpoint into.");
  module.def("discard_staging", &discard_staging, Released(), py::arg("folder"),
             py::kw_only(), py::arg("step"), py::arg("id"),
             "End a save that failed, as clean_up does for one that was killed.");
  module.def(
      "commit",
      [](const std::string& folder, const std::string& manifest,
         const std::optional<FaultHook>& fault_hook) {
        const Committed done =
            commit(folder, parse_manifest(manifest, "manifest to be written"),
                   fault_hook.value_or(nullptr));
        return std::tuple(done.path, done.set_aside);
      },
      Released(), py::arg("folder"), py::kw_only(), py::arg("manifest"),
      py::arg("fault_hook") = py::none(),
      "Publish a staging folder as step-N, durable; returns its path, and the path\n"
      "that what was there before now has, or an empty text.");
  module.def(
      "list_checkpoints",
      [](const std::string& folder) {
        FolderListing listing = list_checkpoints(folder);
        return std::tuple(std::move(listing.checkpoints), std::move(listing.ignored));
      },
      Released(), py::arg("folder"),
      "Checkpoints (those with a problem first, then newest first) and the names with\n"
      "'step-' in them that are none.");
  module.def("inspect_checkpoint", &inspect_checkpoint, Released(), py::arg("path"),
             "The checkpoint in this folder, whatever its name.");
  module.def(
      "verify_files",
      [](const std::string& path, const std::string& manifest, int64_t part,
         int64_t num_parts) {
        verify_files(path, parse_manifest(manifest, path), part, num_parts);
      },
      Released(), py::arg("path"), py::kw_only(), py::arg("manifest"), py::arg("part"),
      py::arg("num_parts"),
      "Compare size and SHA-256 of every num_parts-th file; ValueError names the first\n"
      "that differs.");
  module.def(
      "purge",
      [](const std::string& folder, int64_t keep_latest, const std::string& head,
         const std::optional<FaultHook>& fault_hook) {
        Purged purged = purge(folder, keep_latest, head, fault_hook.value_or(nullptr));
        return std::tuple(std::move(purged.steps), std::move(purged.kept));
      },
      Released(), py::arg("folder"), py::kw_only(), py::arg("keep_latest"),
      py::arg("head"), py::arg("fault_hook") = py::none(),
      "Delete old checkpoints in the line of ancestors of head; returns their steps,\n"
      "and the paths of those that stay because something else lies in them.");
  module.def(
      "clean_up",
      [](const std::string& folder) {
        Leftovers leftovers = clean_up(folder);
        return std::tuple(std::move(leftovers.removed), std::move(leftovers.set_aside));
      },
      Released(), py::arg("folder"),
      "End what killed processes left; returns the names that were deleted, and the\n"
      "new names of checkpoints that had just been replaced.");
}

}  // namespace

void bind_storage(py::module_ module) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const FileError& error) {
      // Python shows the path behind the text.
      const std::string_view text = error.what();
      const std::string start = error.path() + ": ";
      const std::string_view rest =
          text.starts_with(start) ? text.substr(start.size()) : text;
      const py::tuple arguments = py::make_tuple(error.code(), rest, error.path());
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
  });
  bind_safetensors(module);
  bind_hashed_file(module);
  bind_verified_file(module);
  bind_commit(module);
  module.def(
      "dtype_name",
      [](at::ScalarType dtype) { return std::string(dtype_name(to_stored(dtype))); },
      py::arg("dtype"), "Name of a torch dtype in safetensors, e.g. 'BF16'.");
  module.def(
      "stream_copy",
      [](const std::vector<std::pair<at::Tensor, at::Tensor>>& copies,
         int64_t num_threads) {
        std::vector<Copied> spans;
        for (const auto& [to, from] : copies) {
          const at::ScalarType dtype = to.scalar_type();
          spans.push_back({.to = memory_of(to, dtype), .from = memory_of(from, dtype)});
        }
        stream_copy(spans, num_threads);
      },
      Released(), py::arg("copies"), py::kw_only(), py::arg("num_threads"),
      "Copy the second tensor of each pair into the first one (contiguous, CPU, same\n"
      "dtype and bytes) past the caches: for much that is not read soon.");
  module.def(
      "check_exact_cover",
      [](const std::string& name, const std::vector<int64_t>& shape,
         const std::vector<std::pair<std::vector<int64_t>, std::vector<int64_t>>>&
             boxes) {
        std::vector<StoredBox> stored;
        for (const auto& [offset, size] : boxes) {
          stored.push_back({.file = 0, .key = "", .box = {offset, size}});
        }
        check_exact_cover(name, shape, stored);
      },
      py::arg("name"), py::arg("shape"), py::arg("boxes"),
      "Raises ValueError that names the tensor unless each element of the shape lies\n"
      "in exactly one box; boxes are (offset, size).");
  module.def(
      "check_plain_name",
      [](const std::string& name, const std::string& where) {
        check_plain_name(name, where);
      },
      py::arg("name"), py::kw_only(), py::arg("where"),
      "ValueError unless name is one file name without any way out of its folder.");
}

}  // namespace torchtitan::bindings
