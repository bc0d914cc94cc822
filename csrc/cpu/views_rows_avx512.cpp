#define S3H_TABLE kRowsAvx512
#include "views_rows.inc"
