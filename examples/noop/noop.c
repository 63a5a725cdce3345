/*
 * The smallest command there is: no imports, no input, no output. What a run of it costs is what
 * the node itself costs, so the benchmarks use it.
 */
__attribute__((export_name("_start"))) void start(void) {}
