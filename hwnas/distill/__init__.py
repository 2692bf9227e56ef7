"""Cross-layer distillation: attention maps, tutor selection, teachers and their features."""
