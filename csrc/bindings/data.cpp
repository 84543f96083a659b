#include <torch/csrc/utils/pybind.h>

#include "bindings/module.h"
#include "data/row_mapping.h"
#include "data/token_store.h"

namespace torchtitan::bindings {
namespace {

using data::AtEnd;
using data::RowMapping;
using data::TokenShardWriter;
using data::TokenStore;

using WithoutGil = py::call_guard<py::gil_scoped_release>;

}  // namespace

void bind_data(py::module_ module) {
  py::register_exception<data::DamagedShard>(module, "DamagedShard",
                                             PyExc_RuntimeError);

  module.def(
      "num_microbatches",
      [](int64_t global_batch_size, int64_t local_batch_size, int64_t num_ranks,
         int64_t rank) {
        return data::num_microbatches(
            {global_batch_size, local_batch_size, num_ranks, rank});
      },
      "Microbatches of one step; ValueError if the sizes do not fit together.",
      py::kw_only(), py::arg("global_batch_size"), py::arg("local_batch_size"),
      py::arg("num_ranks"), py::arg("rank"));
  module.def(
      "first_row",
      [](int64_t microbatch, int64_t global_batch_size, int64_t local_batch_size,
         int64_t num_ranks, int64_t rank) {
        return data::first_row({global_batch_size, local_batch_size, num_ranks, rank},
                               microbatch);
      },
      "First row of the global batch in a microbatch of this rank.",
      py::arg("microbatch"), py::kw_only(), py::arg("global_batch_size"),
      py::arg("local_batch_size"), py::arg("num_ranks"), py::arg("rank"));
  module.def(
      "check_token_ids", &data::check_token_ids,
      "Raise ValueError unless inputs are ids below vocab_size and labels are that "
      "or -100.",
      py::arg("input"), py::arg("labels"), py::kw_only(), py::arg("vocab_size"),
      WithoutGil());

  py::class_<TokenShardWriter>(
      module, "TokenShardWriter",
      "Collects the ids of documents and writes them as one file.")
      .def(py::init<int64_t>(), py::kw_only(), py::arg("vocab_size"))
      .def(
          "append",
          [](TokenShardWriter& writer, const std::vector<int64_t>& ids,
             const std::string& place) { writer.append(ids, place); },
          "Add the ids of a document; ValueError names place and token of a stray id.",
          py::arg("ids"), py::kw_only(), py::arg("place"))
      .def_property_readonly("num_tokens", &TokenShardWriter::num_tokens)
      .def(
          "write",
          [](const TokenShardWriter& writer, const std::string& path,
             const std::string& note) { writer.write(path, note); },
          "Write a file beside path and rename it; RuntimeError if the system refuses.",
          py::arg("path"), py::kw_only(), py::arg("note"), WithoutGil());

  py::enum_<AtEnd>(module, "AtEnd", "What stands behind the last token of a store.")
      .value("MORE", AtEnd::kMore, "Tokens that are not attached yet.")
      .value("REPEAT", AtEnd::kRepeat, "The first token again, endlessly.")
      .value("STOP", AtEnd::kStop, "Nothing: rows that do not fit are ignored rows.");

  py::class_<TokenStore>(module, "TokenStore",
                         "A growing sequence of tokens in several mapped files.")
      .def(py::init<>())
      .def("attach", &TokenStore::attach,
           "Append a file and return its note; DamagedShard if it is not whole.",
           py::arg("path"), WithoutGil())
      .def("truncate", &TokenStore::truncate, "Forget the files from this number on.",
           py::arg("num_shards"), WithoutGil())
      .def("shard_of", &TokenStore::shard_of, "Number of the file that holds a token.",
           py::arg("position"))
      .def("first_damaged", &TokenStore::first_damaged,
           "Number of the first file whose tokens are damaged, num_shards if none is.",
           WithoutGil())
      .def_property_readonly("num_shards", &TokenStore::num_shards)
      .def_property_readonly("num_tokens", &TokenStore::num_tokens)
      .def(
          "gather",
          [](const TokenStore& store, int64_t first_sample, int64_t num_rows,
             int64_t seq_len, int64_t vocab_size, AtEnd at_end) {
            data::TokenBatch batch;
            {
              const py::gil_scoped_release released;
              batch =
                  store.gather({first_sample, num_rows, seq_len, vocab_size, at_end});
            }
            return py::make_tuple(batch.input, batch.labels);
          },
          "Input and labels, int64 [num_rows, seq_len], of consecutive samples.",
          py::kw_only(), py::arg("first_sample"), py::arg("num_rows"),
          py::arg("seq_len"), py::arg("vocab_size"), py::arg("at_end"));
}

}  // namespace torchtitan::bindings
