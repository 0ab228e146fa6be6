// The module psis_d2._C: empty, loaded for the operators that its object files register.
// Only the part of Python's API that no version changes, so that one binary may serve them all.
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>
#include <torch/library.h>

#include <string>

// setup.py defines these when it compiles the CUDA sources.
#ifndef PSIS_D2_CUDA_VERSION
#define PSIS_D2_CUDA_VERSION ""
#endif
#ifndef PSIS_D2_CUDA_ARCHS
#define PSIS_D2_CUDA_ARCHS ""
#endif
#ifndef PSIS_D2_TORCH_VERSION
#define PSIS_D2_TORCH_VERSION ""
#endif

#if defined(__clang__)
#define PSIS_D2_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define PSIS_D2_COMPILER "gcc " __VERSION__
#else
#define PSIS_D2_COMPILER "unknown"
#endif

namespace psis_d2 {
namespace {

// JSON: what this binary was built with and for. Empty strings: built without CUDA.
std::string build_info() {
  const std::string cuda = PSIS_D2_CUDA_VERSION;
  const std::string backends = cuda.empty() ? R"(["cpu"])" : R"(["cpu", "cuda"])";
  return std::string("{\"compiler\": \"") + PSIS_D2_COMPILER + "\", \"torch\": \"" +
         PSIS_D2_TORCH_VERSION + "\", \"cuda\": \"" + cuda + "\", \"archs\": \"" +
         PSIS_D2_CUDA_ARCHS + "\", \"backends\": " + backends + "}";
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(psis_d2, m) { m.def("build_info() -> str", &build_info); }

}  // namespace psis_d2

extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
