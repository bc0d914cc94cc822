#define S3H_FLOAT_TABLE kPrototypeRowsBaseline
#define S3H_DOUBLE_TABLE kPrototypeRowsBaselineDouble
#include "prototype_rows.inc"
