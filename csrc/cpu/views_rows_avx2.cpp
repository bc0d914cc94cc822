#define S3H_TABLE kRowsAvx2
#include "views_rows.inc"
