from offload_pipeline_tests.defs.project import *
from offload_pipeline_tests.defs.conftest import *
from offload_pipeline_tests.factories import large_payload
import time
def test_x(project):
    before=None
    keys=project.insert([large_payload(5000), large_payload(200)], tenant="../x")
    t=time.time(); d=project.tick(); print(time.time()-t, d)
    t=time.time(); d2=project.run_key("offload_job", key_of("notices", project.instance.get_dynamic_partitions("tenant")[0])); print(time.time()-t)
    for e in d2.all_events: print(e.event_type_value, e.step_key, e.message, getattr(getattr(e.event_specific_data,"error",None),"cause",None) or getattr(e.event_specific_data,"error",None))
    print(metadata_of(d2,"payload_objects")); print(d2.get_asset_check_evaluations())
    keys=project.insert([large_payload(5000), large_payload(200)])
    t=time.time(); r=project.run("copy_job"); print(r.success, r.get_asset_check_evaluations(), time.time()-t, project.statuses())
    project.damage(keys[0])
    r=project.run("offload_job"); print(r.success, [e.event_type_value+str(e.step_key) for e in r.all_events if 'STEP' in e.event_type_value], r.get_asset_check_evaluations(), project.statuses())
    r=project.run("offload_job"); print(r.success,project.statuses())
    try:
        print(project.run_key("offload_job", key_of("notices","nobody")).success)
    except Exception as e: print(type(e), e)
    r=project.run("offload_job","nobody"); print(r.success, metadata_of(r,"payload_objects"))
    try:
        print(project.run_key("offload_job", key_of("nope","acme")).success)
    except Exception as e: print(type(e), e)
    assert 0
