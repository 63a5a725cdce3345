# Toolchains, unpacked into one git-ignored folder, so that nothing on the machine changes.
# Each is pinned; each target is a stamp file that a module's rule depends on.
#
#   TOOLCHAINS=DIR   where they live (default: examples/.toolchains)
#   OUT=DIR          where modules go (default: the agent's own folder)

EXAMPLES   := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
TOOLCHAINS ?= $(EXAMPLES)/.toolchains
OUT        ?= .
PYTHON     ?= python3

ZIG_VERSION  := 0.17.1
ASC_VERSION  := 0.28.20
RUST_VERSION := 1.63.0+dfsg1-2
LLVM_VERSION := 1:14.0.6-12

.DEFAULT_GOAL := all
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# -- C and Zig: the zig compiler, which carries clang, lld and wasi-libc ------------------------
ZIG_STAMP := $(TOOLCHAINS)/zig-$(ZIG_VERSION)/.ready
export ZIG_GLOBAL_CACHE_DIR := $(TOOLCHAINS)/zig-cache
export ZIG_LOCAL_CACHE_DIR  := $(TOOLCHAINS)/zig-cache
ZIG := $(TOOLCHAINS)/zig-$(ZIG_VERSION)/bin/python -m ziglang

$(ZIG_STAMP):
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet ziglang==$(ZIG_VERSION)
	touch $@

# The baseline that every engine has: no SIMD, threads, exceptions or tail calls.
# Paths never reach the module, so two checkouts build the same bytes.
WASM_STACK := 262144
CC_FLAGS = -target wasm32-wasi -mcpu=mvp+bulk_memory+mutable_globals+sign_ext+nontrapping_fptoint \
	-std=c17 -O2 -s -fno-sanitize=all -Wall -Wextra -Wno-unused-function \
	-ffile-prefix-map=$(EXAMPLES)=. -I$(EXAMPLES)/include -Wl,-z,stack-size=$(WASM_STACK)
CC = $(ZIG) cc $(CC_FLAGS)

# -- Rust: Debian's compiler with its own wasm32-wasi standard library; no crates ----------------
RUST_DIR   := $(TOOLCHAINS)/rust-1.63.0
RUST_STAMP := $(RUST_DIR)/.ready
RUST_DEBS  := rustc=$(RUST_VERSION) libstd-rust-1.63=$(RUST_VERSION) \
	libstd-rust-dev-wasm32=$(RUST_VERSION) lld-14=$(LLVM_VERSION) libllvm14=$(LLVM_VERSION) \
	libz3-4 libedit2 libbsd0 libmd0 libxml2 libicu72
RUST_LIB = $(RUST_DIR)/usr/lib/$$(uname -m)-linux-gnu
RUSTC = LD_LIBRARY_PATH=$(RUST_LIB) $(RUST_DIR)/usr/bin/rustc --target wasm32-wasi --edition 2021 \
	-C opt-level=2 -C lto=fat -C panic=abort -C codegen-units=1 -C strip=symbols \
	-C linker=$(RUST_DIR)/usr/bin/wasm-ld-14 \
	-C link-arg=-z -C link-arg=stack-size=$(WASM_STACK) \
	--remap-path-prefix=$(EXAMPLES)=. --deny warnings

$(RUST_STAMP):
	rm -rf $(@D) && mkdir -p $(@D)/deb
	cd $(@D)/deb && apt-get download --quiet=2 $(RUST_DEBS)
	for deb in $(@D)/deb/*.deb; do dpkg-deb --extract "$$deb" $(@D); done
	rm -rf $(@D)/deb
	touch $@

# -- AssemblyScript --------------------------------------------------------------------------------
ASC_DIR   := $(TOOLCHAINS)/assemblyscript-$(ASC_VERSION)
ASC_STAMP := $(ASC_DIR)/.ready
ASC = node $(ASC_DIR)/node_modules/assemblyscript/bin/asc.js

$(ASC_STAMP):
	rm -rf $(@D) && mkdir -p $(@D)
	cd $(@D) && echo '{"private": true}' > package.json \
		&& npm install --silent --no-audit --no-fund --ignore-scripts assemblyscript@$(ASC_VERSION)
	touch $@
