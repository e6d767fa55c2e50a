"""What models are made of: attention, towers of layers, stems. torch alone; no paper's name."""
