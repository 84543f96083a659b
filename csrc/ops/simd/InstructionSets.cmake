# Each source of csrc/ops/simd named after an instruction set is compiled for it; which
# one runs is decided when the program runs. Where the compiler targets another family,
# only the baseline is there.
# Contraction to fused multiply-add and no errno: both keep NaN and infinity as they are.
set(flags -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math)
target_compile_options(torchtitan_ops_simd PRIVATE ${flags})
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(TORCHTITAN_SIMD_DIR "${CMAKE_CURRENT_SOURCE_DIR}/ops/simd")
  set_source_files_properties("${TORCHTITAN_SIMD_DIR}/avx2.cpp" PROPERTIES
    COMPILE_OPTIONS "-mavx2;-mfma")
  set_source_files_properties("${TORCHTITAN_SIMD_DIR}/avx512.cpp" PROPERTIES
    COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mfma;-mprefer-vector-width=512")
endif()
