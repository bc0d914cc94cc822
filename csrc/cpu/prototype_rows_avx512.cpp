#define S3H_FLOAT_TABLE kPrototypeRowsAvx512
#define S3H_DOUBLE_TABLE kPrototypeRowsAvx512Double
#include "prototype_rows.inc"
