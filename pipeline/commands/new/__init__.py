"""`strop new`: five questions, and a recipe that `strop plan` accepts."""
