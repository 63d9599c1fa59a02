// Checks of one instruction against its op's schema, its region or its body; each throws
// Error(kInvalidArtifact) naming the instruction.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/program_schema.h"
#include "runtime/program_shapes.h"
#include "runtime/program_spec.h"

namespace autodeploy::program_format {

// That a value has this dtype and shape.
void expect_value(const ProgramSpec& program, const DimScope& scope, const std::string& where, int32_t v,
                  DType dtype, const std::vector<Dim>& shape);

// Trailing optional operands that an older version of the format did not have may be missing. False when
// the number of operands is not the op's.
bool add_absent_operands(const OpSchema& schema, InstructionSpec* ins);

// That the attributes are the schema's, each of its type.
void check_attrs(const OpSchema& schema, const InstructionSpec& ins);

// That operands and results are what the region says; fills in ins->region.
void check_region(const ProgramSpec& program, const std::vector<RegionProgram>& regions,
                  const DimScope& scope, InstructionSpec* ins);

// That operands, results and the state are what the body says; fills in ins->body and how params are used.
void check_over_keys(ProgramSpec& program, const DimScope& scope, InstructionSpec* ins);

}  // namespace autodeploy::program_format
