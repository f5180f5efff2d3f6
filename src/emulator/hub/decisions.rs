//! Sets and ends faults of devices, and asks them: does this packet, this PUBACK, this token fail?
//!
//! Owns: the order in which faults of one device and of all devices count. Must not know: packets, HTTP.

use super::faults::{Fault, FaultError, FaultName, FaultOrder, Faults};
use super::state::Hub;
use crate::message::excerpt;

impl Hub {
    /// Sets a fault of a device, and replaces one with the same name. Returns whether the device exists.
    pub fn set_fault(&mut self, device_id: &str, fault: Fault) -> bool {
        let Some(state) = self.devices.passing_mut(device_id) else { return false };
        state.faults.set.insert(fault.name(), fault);
        self.wake(device_id);
        true
    }

    /// Sets all the ordered faults, or none.
    ///
    /// # Errors
    /// [`FaultError::UnknownDevice`].
    pub fn order_faults(&mut self, orders: &[FaultOrder]) -> Result<(), FaultError> {
        let named = orders.iter().filter_map(|order| order.device_id.as_deref());
        if let Some(missing) = named.into_iter().find(|id| !self.devices.contains(id)) {
            return Err(FaultError::UnknownDevice(excerpt(missing)));
        }
        for FaultOrder { device_id, fault } in orders {
            tracing::info!(device_id, ?fault, "a fault was set");
        }
        // The orders for one device are set last, so that they replace those for all devices.
        for FaultOrder { fault, .. } in orders.iter().filter(|order| order.device_id.is_none()) {
            self.faults_of_all.set.insert(fault.name(), *fault);
            for state in self.devices.all_passing_mut() {
                state.faults.set.insert(fault.name(), *fault);
            }
        }
        if orders.iter().any(|order| order.device_id.is_none()) {
            let all: Vec<String> = self.device_ids().map(str::to_owned).collect();
            all.iter().for_each(|id| self.wake(id));
        }
        for order in orders {
            if let Some(device_id) = &order.device_id {
                self.set_fault(device_id, order.fault);
            }
        }
        self.version += 1;
        Ok(())
    }

    /// Ends a fault of a device, or all of them. A fault that is not set is ignored. Returns whether the device exists.
    pub fn clear_faults(&mut self, device_id: &str, name: Option<FaultName>) -> bool {
        let Some(state) = self.devices.passing_mut(device_id) else { return false };
        state.faults.set.retain(|own, _| name.is_some_and(|name| name != *own));
        self.wake(device_id);
        true
    }

    /// The faults of a device; `None` if it does not exist.
    pub fn faults(&self, device_id: &str) -> Option<Vec<Fault>> {
        self.devices.get(device_id).map(|state| state.faults.set.values().copied().collect())
    }

    /// Counts a packet of the device, sent or received. Returns whether the caller must drop the connection instead.
    pub fn drops_packet(&mut self, device_id: &str) -> bool {
        self.decide(device_id, Faults::drops_packet)
    }

    /// Whether the device's next PUBACK must be ignored.
    pub fn ignores_puback(&mut self, device_id: &str) -> bool {
        self.decide(device_id, |faults| faults.use_up(FaultName::IgnorePuback))
    }

    /// Whether the device's token must count as expired from now on.
    pub fn expires_token(&mut self, device_id: &str) -> bool {
        self.decide(device_id, |faults| faults.use_up(FaultName::ExpireToken))
    }

    /// Whether the hub throttles the device.
    pub fn is_throttled(&self, device_id: &str) -> bool {
        self.devices.get(device_id).is_some_and(|state| state.faults.is_throttled())
    }

    fn decide(&mut self, device_id: &str, decide: impl FnOnce(&mut Faults) -> bool) -> bool {
        // Most devices have no faults, and this is asked for each packet.
        if self.devices.get(device_id).is_none_or(|state| state.faults.set.is_empty()) {
            return false;
        }
        let Some(state) = self.devices.passing_mut(device_id) else { return false };
        // Viewers must see that counts fall and faults end.
        self.quiet_changes += 1;
        decide(&mut state.faults)
    }
}
