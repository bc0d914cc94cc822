#define S3H_FLOAT_TABLE kPrototypeRowsAvx2
#define S3H_DOUBLE_TABLE kPrototypeRowsAvx2Double
#include "prototype_rows.inc"
