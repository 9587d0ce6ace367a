"""The main job: copy large payloads out of rows into verified objects, and free the rows."""
