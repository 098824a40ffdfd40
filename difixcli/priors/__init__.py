"""What proposes views to distillation beside the fixer; each with its networks, which know no nerfstudio."""
