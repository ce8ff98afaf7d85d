"""Predicted latency: a network's work by operator, a device's costs fitted to timed networks, and an interval around
their product.

latency.predict(work, target, rows=...)      -> Prediction of kind `calibrated`, `transferred` or `bound`
work.work_of(model)                          an ONNX model -> its operators' shapes
calibration.fit(rows, device, population)    timed networks of one device -> its costs
probes.models(), probes.rows(times, source)  small networks to time on a device, and what their times are to a fit
shipped.calibrate(device, runtime=...)       the same from published measurements of devices with its core
"""
